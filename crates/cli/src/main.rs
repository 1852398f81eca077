//! The `cpr` command.
fn main() {}
