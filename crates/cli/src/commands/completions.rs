//! `cpr completions`

use cpr_types::Result;

use crate::args::Completions;
use crate::manual;
use crate::output::write_stdout;

pub fn completions(args: &Completions) -> Result<u8> {
    write_stdout(&manual::completions(args.shell))?;
    Ok(0)
}
