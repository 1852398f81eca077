//! The command line for checkpoints that programs write themselves: `cpr app`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand, ValueHint};

use super::{parse_duration, parse_pair};

/// `cpr app`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr app list /scratch heat
  cpr app export /scratch heat temperature -o temperature.npy

What is meant are not images of processes, but the generations that a program has written with gridcpr_app_write() or \
its like in another language.")]
pub struct App {
    /// What to do
    #[command(subcommand)]
    pub verb: AppVerb,
}

/// Which checkpoint.
#[derive(Debug, Args)]
pub struct AppStore {
    /// Base directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub base: PathBuf,
    /// Name of the checkpoint
    pub name: String,
}

/// What to do with one.
#[derive(Debug, Subcommand)]
pub enum AppVerb {
    /// List generations, the oldest first
    List {
        #[command(flatten)]
        place: AppStore,
        /// Only those that remember this value under this key; may be given several times
        #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_pair, action = ArgAction::Append)]
        attributes: Vec<(String, String)>,
    },
    /// Write a generation: variables and files
    #[command(after_help = "\
Files of numpy (.npy) become variables with the type and shape that they have, other files bytes. Each generation that the \
command writes is a full one.")]
    Write {
        #[command(flatten)]
        place: AppStore,
        /// A variable, from a file of numpy or any other
        #[arg(long = "variable", value_name = "NAME=FILE", value_parser = parse_pair, action = ArgAction::Append)]
        variables: Vec<(String, String)>,
        /// A file that belongs to the generation as it is, under its own name
        #[arg(long = "file", value_name = "FILE", value_hint = ValueHint::FilePath, action = ArgAction::Append)]
        files: Vec<PathBuf>,
        /// What the generation remembers
        #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_pair, action = ArgAction::Append)]
        attributes: Vec<(String, String)>,
        /// Which part this is
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        rank: u32,
        /// How many parts there are
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        ranks: u32,
        /// Which run the parts belong to, where there are several
        #[arg(long, value_name = "TEXT")]
        session: Option<String>,
        /// Keep so many complete generations
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Keep each generation so long
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        lifetime: Option<Duration>,
    },
    /// Write all variables and files of the newest sound generation into a new directory
    Restore {
        #[command(flatten)]
        place: AppStore,
        /// Which generation; the newest one in which nothing is altered or missing unless given
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
        /// Part of which rank
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        rank: u32,
        /// The directory, which must not be there yet
        #[arg(short, long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
        output: PathBuf,
    },
    /// Change what a generation remembers, or how long it is kept
    Update {
        #[command(flatten)]
        place: AppStore,
        /// Which one
        #[arg(long, value_name = "NUMBER")]
        generation: u64,
        /// What it remembers from now on
        #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_pair, action = ArgAction::Append)]
        attributes: Vec<(String, String)>,
        /// How long it is kept, from when it was written on
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        lifetime: Option<Duration>,
    },
    /// Show the variables and attributes of a generation
    Inspect {
        #[command(flatten)]
        place: AppStore,
        /// Which one; the newest complete one unless given
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
    },
    /// Compare every hash of a generation, or of all complete ones
    Verify {
        #[command(flatten)]
        place: AppStore,
        /// Which one; all that are complete unless given
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
    },
    /// Write a variable, or all of them, to a file that numpy.load() reads
    Export {
        #[command(flatten)]
        place: AppStore,
        /// Name of the variable
        #[arg(required_unless_present = "npz")]
        variable: Option<String>,
        /// Which generation; the newest complete one unless given
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
        /// Part of which rank
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        rank: u32,
        /// Write the elements only, without numpy's header
        #[arg(long)]
        raw: bool,
        /// Write all variables, as an archive
        #[arg(long, conflicts_with_all = ["variable", "raw"])]
        npz: bool,
        /// The file, which must not be there yet
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: PathBuf,
    },
    /// Remove a generation that no other one needs, or all of them
    Free {
        #[command(flatten)]
        place: AppStore,
        /// Which one
        #[arg(long, value_name = "NUMBER", required_unless_present = "all")]
        generation: Option<u64>,
        /// All of them, and what is known of them
        #[arg(long, conflicts_with = "generation")]
        all: bool,
    },
    /// Copy a generation below another base directory
    Transfer {
        #[command(flatten)]
        place: AppStore,
        /// Which one; the newest complete one unless given
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
        /// The other base directory
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
    },
}
