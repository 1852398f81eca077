//! Man pages and shell completion, from the definition of the command line.

use std::path::Path;

use clap::CommandFactory;
use cpr_types::{Context, Result};

use crate::args::Cli;

/// Writes `cpr.1` and one page for each command into `directory`.
pub fn write_pages(directory: &Path) -> Result<()> {
    let what = || format!("write man pages into {}", directory.display());
    std::fs::create_dir_all(directory).context(what)?;
    clap_mangen::generate_to(Cli::command(), directory).context(what)
}

/// The completion script for `shell`.
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cpr", &mut script);
    script
}
