//! How the shared library is linked: its name for the dynamic loader, and that it is never unloaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libgridcpr.so.0");
    // Its thread would go on in code that is no longer there.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
