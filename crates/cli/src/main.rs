//! The `cpr` command: parses, asks the crates below, and shows what they say.
//!
//! It decides nothing about jobs or images and knows no kernel interface. Jobs and checkpoint workers are forked off
//! this process, so it starts no thread and no runtime before that has been done.

mod args;
mod commands;
mod inspect;
mod manual;
mod mpi;
mod output;
mod signal;
mod target;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as ClapError;
use cpr_types::{Error, ErrorKind};

use crate::args::{Cli, Global};
use crate::output::{Output, write_stdout};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => return explain(&refusal),
    };
    let output = Output::new(&cli.global);
    // The default hook has told what happened and where.
    let result = std::panic::catch_unwind(|| commands::dispatch(output, cli.verb)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Internal, "cpr has come upon a defect of its own")
            .with_hint("please report it with the message above"))
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(output, &error),
    }
}

fn fail(output: Output, error: &Error) -> ExitCode {
    output.error(error);
    ExitCode::from(error.kind().exit_code())
}

/// Prints help, or why the command line is not understood.
fn explain(refusal: &clap::Error) -> ExitCode {
    let text = refusal.render();
    // The line was not understood, but this much of it may be.
    let json = std::env::args_os()
        .take_while(|word| word != "--")
        .any(|word| word == "--json");
    let output = Output::new(&Global {
        json,
        quiet: false,
        verbose: false,
    });
    match refusal.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => match write_stdout(text.to_string().as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(output, &error),
        },
        ClapError::DisplayHelpOnMissingArgumentOrSubcommand if !json => {
            eprint!("{text}");
            ExitCode::from(ErrorKind::Usage.exit_code())
        }
        _ => fail(output, &usage_error(&text.to_string())),
    }
}

/// Our error from the parser's text: a first paragraph, tips, usage, and a pointer to `--help`.
fn usage_error(text: &str) -> Error {
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        let lines: Vec<&str> = paragraph.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        lines.join(" ")
    });
    let first = paragraphs.next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(&first).to_string();
    let mut hints: Vec<String> = paragraphs
        .filter(|p| p.starts_with("tip: ") || p.starts_with("Usage: "))
        .map(|p| p.strip_prefix("tip: ").map_or(p.clone(), str::to_string))
        .map(|p| p.replacen("Usage: ", "usage: ", 1))
        .collect();
    if hints.is_empty() {
        hints.push("see `cpr --help`".to_string());
    }
    Error::new(ErrorKind::Usage, message).with_hint(hints.join("; "))
}
