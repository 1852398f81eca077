//! The command line of a grid: `cpr submit`, `cpr jobs` and their kin.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand, ValueHint};
use gridcpr::grid::staging::Staging;

use super::parse_duration;

/// `cpr submit`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr submit --every 10m --name sim -- ./sim input.dat
  cpr submit --after 17 --slots 4 --time-limit 2h -- make -j4
  cpr submit --units 3 -o 'part-%u.out' -- ./part
  cpr submit --file coupled.toml
  cpr submit --stage-in 'area:mesh.dat>mesh.dat' --stage-out 'result>area:runs/1' -- ./sim

The job runs on a node of the grid in the present directory and environment, which every node has to have. What it prints \
is appended to a file. Where its node is lost it goes on elsewhere from its newest good checkpoint.")]
pub struct Submit {
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
    /// Checkpoint the job again and again after this time, in whole seconds
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub every: Option<Duration>,
    /// Adapt the time between checkpoints to what they cost and to how often the system fails
    #[arg(long)]
    pub adapt: bool,
    /// Keep the newest N complete checkpoints while the job runs (2 unless it is given)
    #[arg(long, value_name = "N")]
    pub keep: Option<u32>,
    /// Let complete checkpoints go after this time, in whole seconds; the newest one stays while the job may go on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// Jobs with higher numbers go first (0 unless it is given)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// Slots of a node that the job takes (1 unless it is given)
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Memory of a node that the job takes, MiB (0 unless it is given)
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// The only node it may run on
    #[arg(long)]
    pub node: Option<String>,
    /// The engine that is to save it; any node where that works may have it
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// A class that the engine has to be a member of
    #[arg(long, value_name = "NAME")]
    pub class: Option<String>,
    /// A property that the engine must have which is to save it, as `cpr engines show` lists them; may be given several
    /// times
    #[arg(long, value_name = "PROPERTY=VALUE", value_parser = crate::args::parse_pair, action = ArgAction::Append)]
    pub need: Vec<(String, String)>,
    /// A property that its node must have; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = crate::args::parse_pair, action = ArgAction::Append)]
    pub require: Vec<(String, String)>,
    /// A job that must have ended with exit code 0 before this one starts; may be given several times
    #[arg(long, value_name = "ID", action = ArgAction::Append)]
    pub after: Vec<i64>,
    /// End the job when a run of it has taken this time, in whole seconds
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
    /// How often it is started again after failures of the system, until it makes a checkpoint (5 unless it is given)
    #[arg(long, value_name = "N")]
    pub retries: Option<u32>,
    /// File that its output is appended to (cpr-ID.out unless it is given)
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<String>,
    /// Submit one job for each of these numbers; each has its own in GRIDCPR_ARRAY_INDEX, and in place of %a in the
    /// name of its output
    #[arg(long, value_name = "FIRST-LAST[:STEP]", value_parser = parse_array)]
    pub array: Option<(i64, i64, i64)>,
    /// Run the command so many times at once, as units of one job, on as many nodes as can have them; each has its
    /// number, from 0, in GRIDCPR_UNIT and in place of %u in the name of its output, and how many there are in
    /// GRIDCPR_UNITS
    ///
    /// All are started or none is. A checkpoint of the job is one stop of all units, and they go on from it together. A
    /// unit that ends with exit code 0 has done its part; any other end of one ends all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub units: Option<u32>,
    /// Save each unit by itself while the others run, and start it again by itself when its node is lost: units say
    /// nothing to each other
    #[arg(long)]
    pub independent: bool,
    /// Put a checkpoint off, for this time at most, until the job, or the independent unit, uses little memory (in
    /// whole seconds, 10m at most)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub save_low: Option<Duration>,
    /// Before it starts, copy FROM, which is `area:PATH` in the grid's area for files or an absolute path on its node,
    /// to TO below its working directory; FROM>>TO appends; may be given several times
    ///
    /// Where it goes on on another node, what is not there is copied again. TO<FROM and TO<<FROM mean the same. Has to
    /// be quoted.
    #[arg(long, value_name = "FROM>TO", value_parser = Staging::parse, action = ArgAction::Append)]
    pub stage_in: Vec<Staging>,
    /// When it has ended, copy FROM, which is below its working directory, to TO, which is `area:PATH` or an absolute
    /// path on its node; FROM>>TO appends; may be given several times
    ///
    /// The job has finished when everything is there, and fails where something cannot be copied.
    #[arg(long, value_name = "FROM>TO", value_parser = Staging::parse, action = ArgAction::Append)]
    pub stage_out: Vec<Staging>,
    /// Read what the job is to be from a file in TOML, with the names of the HTTP interface; options given besides win
    ///
    /// In it, units can have commands and needs of their own.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "units")]
    pub file: Option<PathBuf>,
    /// A word of your choice: whatever is submitted with the same one is submitted once
    #[arg(long, value_name = "WORD")]
    pub key: Option<String>,
    /// The command and its arguments
    #[arg(required_unless_present = "file", trailing_var_arg = true, value_name = "COMMAND",
        value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

/// `cpr mpi`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr submit --units 4 --every 10m -- cpr mpi mpiexec -n 4 ./heat
  cpr submit --units 2 --slots 8 -- cpr mpi --ranks 8 mpiexec -n 16 ./heat

Unit 0 runs the command, and is told in its environment where the others are: MPICH and Open MPI start the rest of the \
ranks there. The units need a directory that all of them see.")]
pub struct Mpi {
    /// Ranks for each unit
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub ranks: u32,
    /// Directory in which the units meet, seen by all of them (the present one unless it is given)
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub directory: Option<PathBuf>,
    /// What mpiexec calls: gives the unit on a host a command
    #[arg(long, hide = true)]
    pub launch: bool,
    /// mpiexec or another command that calls it, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND",
        value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// `cpr jobs`
#[derive(Debug, Args)]
pub struct Jobs {
    /// Only this job
    #[arg(value_name = "ID")]
    pub id: Option<i64>,
    /// Also list jobs that are over
    #[arg(short, long)]
    pub all: bool,
    /// Only jobs in these states, separated by commas
    #[arg(long, value_name = "STATES")]
    pub state: Option<String>,
    /// Only jobs of this user
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Only jobs that this node has
    #[arg(long)]
    pub node: Option<String>,
    /// Only jobs of this array
    #[arg(long, value_name = "ID")]
    pub array: Option<i64>,
}

/// `cpr cancel`
#[derive(Debug, Args)]
pub struct Cancel {
    /// Number of a job, as `cpr jobs` lists it
    #[arg(value_name = "ID", required_unless_present = "array")]
    pub id: Option<i64>,
    /// All jobs of this array instead
    #[arg(long, value_name = "ID", conflicts_with = "id")]
    pub array: Option<i64>,
}

/// `1-10` or `0-90:10`
fn parse_array(text: &str) -> Result<(i64, i64, i64), String> {
    let (range, step) = text.split_once(':').unwrap_or((text, "1"));
    let numbers = range.split_once('-').and_then(|(first, last)| {
        let step = step.parse::<u32>().ok().filter(|step| *step > 0)?;
        Some((first.parse::<u32>().ok()?, last.parse::<u32>().ok()?, step))
    });
    match numbers {
        Some((first, last, step)) if first <= last => Ok((first.into(), last.into(), step.into())),
        _ => Err("not a range of numbers; write for example 1-10 or 0-90:10".to_string()),
    }
}

/// `cpr queue`
#[derive(Debug, Args)]
pub struct Queue {
    /// Only jobs of this user
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
}

/// `cpr context`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr context set site --grid https://grid.example:7700 --ca ca.pem --certificate ada.pem --key ada.key
  cpr context use site
  cpr context use --none

Where GRIDCPR_GRID is set it says which grid is meant, whatever was chosen here.")]
pub struct Context {
    /// What to do; without it all are listed
    #[command(subcommand)]
    pub verb: Option<ContextVerb>,
}

/// What `cpr context` can do.
#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// Choose the grid of all further commands
    Use {
        /// Name of a grid
        #[arg(required_unless_present = "none")]
        name: Option<String>,
        /// The grid of this machine
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Give a grid a name, or change what is known of it
    Set(ContextSet),
    /// Forget a grid
    Rm {
        /// Name of a grid
        name: String,
    },
}

/// `cpr context set`
#[derive(Debug, Args)]
pub struct ContextSet {
    /// Name of the grid
    pub name: String,
    /// Where it is: unix:/PATH or https://HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub grid: String,
    /// File with the certificates of the CAs that are believed
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,
    /// File with your certificate
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    pub certificate: Option<PathBuf>,
    /// File with its key
    #[arg(long, value_name = "FILE", requires = "certificate", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
    /// File with the lists of revoked certificates
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub revoked: Option<PathBuf>,
    /// File with your token
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// Let the token be sent over a network as it is
    #[arg(long)]
    pub allow_plain_http: bool,
}

/// `cpr recover`
#[derive(Debug, Args)]
pub struct Recover {
    /// Number of a job, as `cpr jobs` lists it
    #[arg(value_name = "ID")]
    pub id: i64,
    /// The checkpoint to go on from, instead of the newest good one
    #[arg(long, value_name = "CHECKPOINT")]
    pub from: Option<i64>,
    /// The node to go on
    #[arg(long, value_name = "NODE")]
    pub on: Option<String>,
}

/// `cpr policy`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr policy 17 --every 5m --keep 3
  cpr policy 17 --every 0s

What is not given stays as it is.")]
pub struct Policy {
    /// Number of a job, as `cpr jobs` lists it
    #[arg(value_name = "ID")]
    pub id: i64,
    /// Checkpoint the job again and again after this time, in whole seconds; 0s: only when somebody asks
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub every: Option<Duration>,
    /// Adapt the time between checkpoints to what they cost and to how often the system fails, or do not
    #[arg(long, value_name = "yes|no", value_parser = parse_yes)]
    pub adapt: Option<bool>,
    /// Keep the newest N complete checkpoints
    #[arg(long, value_name = "N")]
    pub keep: Option<u32>,
    /// Let complete checkpoints go after this time, in whole seconds; 0s: keep them
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// Save each unit by itself while the others run, or all in one stop
    #[arg(long, value_name = "yes|no", value_parser = parse_yes)]
    pub independent: Option<bool>,
    /// Put checkpoints off, for this time at most, until little memory is used; 0s: make them at once
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub save_low: Option<Duration>,
}

/// `yes` or `no`
fn parse_yes(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_string()),
    }
}

/// `cpr transfer`
#[derive(Debug, Args)]
pub struct Transfer {
    /// Number of a checkpoint, as `cpr checkpoints` lists it
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: i64,
    /// The node that is to hold a copy
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Do not bring it there after all
    #[arg(long)]
    pub cancel: bool,
    /// Come back when it is there
    #[arg(long, conflicts_with = "cancel")]
    pub wait: bool,
}

/// `cpr free`
#[derive(Debug, Args)]
pub struct Free {
    /// Numbers of checkpoints, as `cpr checkpoints` lists them
    #[arg(value_name = "CHECKPOINT", required = true)]
    pub checkpoints: Vec<i64>,
}

/// `cpr usage`
#[derive(Debug, Args)]
pub struct Usage {}

/// `cpr checkpoints`
#[derive(Debug, Args)]
pub struct Checkpoints {
    /// Only those of this job
    #[arg(value_name = "ID")]
    pub job: Option<i64>,
    /// Also list those that failed, were lost or are freed
    #[arg(short, long)]
    pub all: bool,
    /// Only those of which this node holds a copy; `store` for the common store
    #[arg(long, value_name = "NODE")]
    pub location: Option<String>,
    /// The images of this checkpoint, one for each unit of its job
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "location")]
    pub images_of: Option<i64>,
}

/// `cpr drain`
#[derive(Debug, Args)]
pub struct Drain {
    /// Name of a node
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Let it take jobs again
    #[arg(long)]
    pub undo: bool,
}

/// `cpr fault`
#[derive(Debug, Args)]
pub struct Fault {
    /// Name of a node
    #[arg(value_name = "NODE")]
    pub node: String,
    /// What is wrong with it, in a few words
    #[arg(value_name = "REASON")]
    pub reason: String,
}

/// `cpr events`
#[derive(Debug, Args)]
pub struct Events {
    /// Only those about this job
    #[arg(long, value_name = "ID")]
    pub job: Option<i64>,
    /// Only those about this node
    #[arg(long)]
    pub node: Option<String>,
    /// Only those of this kind, as job.running, or all that begin so, as job
    #[arg(long)]
    pub kind: Option<String>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    pub follow: bool,
}

/// `cpr nodes`
#[derive(Debug, Args)]
pub struct Nodes {}

/// Where the token for a grid on the network is.
pub const TOKEN_FILE: &str = "GRIDCPR_TOKEN_FILE";
/// Where the certificate of the CA is.
pub const CA: &str = "GRIDCPR_CA";
/// Where the user's own certificate is.
pub const CERTIFICATE: &str = "GRIDCPR_CERTIFICATE";
/// Where its key is.
pub const KEY: &str = "GRIDCPR_KEY";
/// Where the lists of revoked certificates are.
pub const REVOKED: &str = "GRIDCPR_REVOKED";
/// Whether a token may be sent over a network as it is.
pub const ALLOW_PLAIN_HTTP: &str = "GRIDCPR_ALLOW_PLAIN_HTTP";

/// The file that a variable of the environment names, where it does.
pub fn file(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}
