//! The command line: the one definition behind the parser, `--help`, the man pages and shell completion.

pub mod app;
pub mod grid;
pub mod images;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use cpr_engines::{Condition, Request};
use cpr_node::{Compression, FileRule, Keep, Sequence};

use self::app::App;
use self::grid::{
    Cancel, Checkpoints, Context, Drain, Events, Fault, Free, Jobs, Mpi, Nodes, Policy, Queue, Recover, Submit,
    Transfer, Usage,
};
use self::images::{Check, Edit, Images, Inspect, Merge, Verify};
use crate::signal::parse_signal;

/// Exit codes in short, for the end of `cpr --help`.
const EXIT_CODES: &str = "\
Exit codes: 0 success; 64 to 80 failures of cpr itself, one for each cause; otherwise the job's own.
The whole list is in docs/exit-codes.md.";

const GLOBAL: &str = "Options of every command";
const ENGINE: &str = "Choice of the checkpoint engine";

/// Checkpoint and restart jobs
#[derive(Debug, Parser)]
#[command(
    name = "cpr",
    version,
    long_about = "Checkpoint and restart jobs.\n\n\
        A checkpoint saves a running program, with everything it has in memory and open, as one image file. Restarting \
        the image lets the program go on from there, after a crash, a reboot or on another day, as if nothing had \
        happened. Programs need not be changed or linked to anything.",
    after_help = EXIT_CODES,
    disable_help_subcommand = true,
    max_term_width = 100,
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print results, and errors, as one JSON object
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Print nothing but errors and what was asked for; lists become bare names
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = GLOBAL)]
    pub quiet: bool,
    /// Tell on standard error what is being done
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command as a job that can be checkpointed and restarted
    Run(Run),
    /// Stand in for a job in the script of a batch system, and become its command
    Exec(Exec),
    /// List jobs
    #[command(visible_alias = "list")]
    Ps(Ps),
    /// Save a running job, or any process with its descendants, as an image
    #[command(visible_alias = "dump")]
    Checkpoint(Checkpoint),
    /// Let a job go on from its newest good image, or start one from an image
    #[command(visible_alias = "restore")]
    Restart(Restart),
    /// Move a running job to another host
    Migrate(Migrate),
    /// Stop a job, process or session for a while and free its memory, without an image
    Suspend(Stand),
    /// Let a suspended job, process or session go on
    Resume(Stand),
    /// Tell the programs of a job that something has happened, if they use libgridcpr
    Notify(Notify),
    /// Tell a script what happens to the job that it runs in: checkpoints, restarts and what somebody says
    Listen(Listen),
    /// Use the terminal of a job in the background; Ctrl-] leaves it
    Attach(JobName),
    /// Show what a job in the background has printed
    Logs(Logs),
    /// Wait until a job ends, and exit with its exit code
    Wait(Wait),
    /// Send a job a signal
    Kill(Kill),
    /// List images
    Images(Images),
    /// Show what an image contains
    #[command(visible_alias = "show")]
    Inspect(Inspect),
    /// Find out whether a checkpoint or a restart would succeed, and why not
    Check(Check),
    /// Read an image in full and compare every hash in it; with --restore, also restart it in a sandbox
    Verify(Verify),
    /// Make a new image from one, with changes
    Edit(Edit),
    /// Make one full image of an increment and the images it needs
    Merge(Merge),
    /// Look after checkpoints that programs write themselves, with libgridcpr
    App(App),
    /// List the checkpoint engines of this node, or show one
    Engines(Engines),
    /// List the classes of engines, and their members
    Classes,
    /// List the plug-ins for devices of this node
    Devices,
    /// Remove jobs with their images and output, or single images
    Rm(Rm),
    /// Queue a command as a job of a grid
    Submit(Submit),
    /// Run mpiexec over the units of a job of a grid: the command of a job that cpr submit --units has submitted
    Mpi(Mpi),
    /// List the jobs of a grid
    Jobs(Jobs),
    /// List the jobs of a grid that wait, in the order in which they start, and why each of them waits
    Queue(Queue),
    /// End a job of a grid for good
    Cancel(Cancel),
    /// Let a job of a grid go on that was suspended or cancelled, or that failed
    Recover(Recover),
    /// Change how a job of a grid is saved from now on
    Policy(Policy),
    /// List the checkpoints that a grid has
    Checkpoints(Checkpoints),
    /// Bring a copy of a checkpoint of a grid to a node
    Transfer(Transfer),
    /// Let checkpoints of a grid go that are not needed any more
    Free(Free),
    /// Show what a user has had a grid do, and what their checkpoints take
    Usage(Usage),
    /// List the nodes of a grid
    Nodes(Nodes),
    /// Let the jobs of a node go elsewhere, and give it no more
    Drain(Drain),
    /// Say that something is wrong with a node: its jobs are told, and leave it
    Fault(Fault),
    /// List what has happened in a grid
    Events(Events),
    /// List the grids that have a name, and choose one
    Context(Context),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write the man pages
    #[command(hide = true)]
    Man(Man),
}

/// `cpr run`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr run --name sim --every 10m --keep 3 -- ./sim input.dat
  cpr run --detach -- python3 train.py

The job runs in PID and IPC namespaces of its own, and needs no privilege. In the foreground `cpr run` ends when the job does, \
with the job's exit code (128 + N where signal N ended it, 79 where a checkpoint did).")]
pub struct Run {
    /// Name of the job, instead of one made from the command
    #[arg(long)]
    pub name: Option<String>,
    /// Checkpoint the job again and again after this time: 30s, 10m, 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub every: Option<Duration>,
    /// What the checkpoints of --every save, in a circle: F everything, I what changed since the last F, i what changed
    /// since the last one
    ///
    /// For example FIiii. Without this option every image is a full one. Where an increment cannot be made, because the
    /// job was restarted or the image before is gone, a full image is.
    #[arg(long, value_name = "FIi", requires = "every")]
    pub sequence: Option<Sequence>,
    /// Keep only the newest N images, and those they need
    #[arg(long, value_name = "N", value_parser = parse_keep)]
    pub keep: Option<usize>,
    /// How long checkpoints that its programs write themselves with libgridcpr are kept, unless these say it
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub lifetime: Option<Duration>,
    /// Give the job a terminal of its own
    #[arg(short, long)]
    pub terminal: bool,
    /// Leave the job in the present IPC namespace, where it sees System V objects and message queues of others; of its
    /// own only shared memory can be saved then
    #[arg(long)]
    pub share_ipc: bool,
    /// Save the job and end it when cpr gets this signal, instead of passing it on; the exit code is 79 then. May be
    /// given several times
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal, action = ArgAction::Append)]
    pub save_on: Vec<i32>,
    /// What checkpoints do with TCP connections to outside the job
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Tcp::Refuse)]
    pub tcp: Tcp,
    /// Run in the background; `cpr logs` shows the output
    #[arg(short, long)]
    pub detach: bool,
    /// Write what the job prints to the end of this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "terminal")]
    pub output: Option<PathBuf>,
    /// End the job when this lease lapses, which a node's agent renews
    #[arg(long, value_name = "FILE", hide = true)]
    pub lease: Option<PathBuf>,
    /// What becomes of the job in the foreground once it has ended with exit code 0
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnExit::Keep, conflicts_with = "detach")]
    pub on_exit: OnExit,
    #[command(flatten)]
    pub contents: Contents,
    #[command(flatten)]
    pub wanted: Wanted,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// `cpr exec`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples, as lines of a batch script:
  exec cpr exec --name $SLURM_JOB_ID -- ./sim input.dat
  exec cpr exec --recover --name sim -- ./sim input.dat
  exec cpr exec --recover --save-on USR1 --name sim-$SLURM_JOB_ID -- ./sim input.dat
  exec cpr exec --recover --name sim --fetch 'ssh store cat sim.cpr' -- ./sim input.dat

Without --recover the command is run under its own PID with nothing of cpr around it, and `cpr checkpoint NAME` finds it. \
With --recover cpr stays: it passes signals on to the job, and ends with its exit code.")]
pub struct Exec {
    /// Identifier of the job, under which it is checkpointed
    #[arg(long)]
    pub name: String,
    /// Go on from the newest good image of the job; run the command only where there is none
    #[arg(long)]
    pub recover: bool,
    /// Go on from this image; with --fetch, what its command is to fetch
    #[arg(long, value_name = "IMAGE", requires = "recover", value_hint = ValueHint::FilePath)]
    pub image: Option<OsString>,
    /// First run this command of the shell, which prints the image to go on from, or nothing where there is none so far
    ///
    /// It finds the job in $GRIDCPR_JOB, and what --image says in $GRIDCPR_IMAGE.
    #[arg(long, value_name = "COMMAND", requires = "recover")]
    pub fetch: Option<OsString>,
    /// Checkpoint the job again and again after this time: 30s, 10m, 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "recover")]
    pub every: Option<Duration>,
    /// Save the job and end it when cpr gets this signal, instead of passing it on; the exit code is 79 then, with
    /// which the batch system is to start it again. May be given several times
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal, requires = "recover", action = ArgAction::Append)]
    pub save_on: Vec<i32>,
    /// Run this command of the shell when a checkpoint has ended the job, before cpr ends: to have the batch system
    /// start it again, for example
    ///
    /// It finds the job in $GRIDCPR_JOB, and its image in $GRIDCPR_IMAGE.
    #[arg(long, value_name = "COMMAND", requires = "recover")]
    pub when_saved: Option<OsString>,
    /// What becomes of the job once it has ended with exit code 0
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnExit::Keep, requires = "recover")]
    pub on_exit: OnExit,
    /// Keep only the newest N images, and those they need
    #[arg(long, value_name = "N", value_parser = parse_keep)]
    pub keep: Option<usize>,
    /// What checkpoints do with TCP connections to outside the job
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Tcp::Refuse)]
    pub tcp: Tcp,
    #[command(flatten)]
    pub contents: Contents,
    #[command(flatten)]
    pub wanted: Wanted,
    /// The command and its arguments
    #[arg(required_unless_present = "recover", trailing_var_arg = true, value_name = "COMMAND",
        value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// Which engine checkpoints a job.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Use this checkpoint engine; `cpr engines` lists all
    #[arg(long, value_name = "NAME", help_heading = ENGINE)]
    pub engine: Option<String>,
    /// Use an engine of this class; may be given several times
    #[arg(long, value_name = "NAME", action = ArgAction::Append, help_heading = ENGINE)]
    pub class: Vec<String>,
    /// Use an engine with this property; may be given several times
    #[arg(long, value_name = "PROPERTY=VALUE", action = ArgAction::Append, help_heading = ENGINE)]
    pub need: Vec<Condition>,
    /// Only say which engine would be used, and what is wrong with the others
    #[arg(long, help_heading = ENGINE)]
    pub explain: bool,
}

impl Wanted {
    /// As a choice among engines takes it.
    pub fn request(&self) -> Request {
        Request {
            engine: self.engine.clone(),
            classes: self.class.clone(),
            needs: self.need.clone(),
        }
    }
}

/// What a checkpoint does with TCP connections to outside the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tcp {
    /// The checkpoint is refused, and the job goes on
    Refuse,
    /// They are closed: after a restart the program finds that they were reset
    Close,
    /// They go on after a restart; the network must keep packets of the other side away until then
    Keep,
}

impl From<Tcp> for cpr_node::TcpPolicy {
    fn from(tcp: Tcp) -> Self {
        match tcp {
            Tcp::Refuse => Self::Refuse,
            Tcp::Close => Self::Close,
            Tcp::Keep => Self::Keep,
        }
    }
}

/// What becomes of a job that has ended with exit code 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Nothing
    Keep,
    /// The job is removed with its images
    Remove,
}

/// `cpr ps`
#[derive(Debug, Args)]
pub struct Ps {
    /// Also list jobs that have ended
    #[arg(short, long)]
    pub all: bool,
}

/// What of files goes into an image.
#[derive(Debug, Args)]
pub struct Contents {
    /// How to treat the contents of the files that PATTERN names; may be given several times, later ones win
    ///
    /// Policies, joined by commas: `check` (restart is refused where the contents have changed), `nocheck` (they may
    /// have), `truncate` and `nottruncate` (cut the file to its saved length, or do not), `append` (go on at its end),
    /// `backup-restore` (the contents are saved, and put back in place), `backup-anonymous` (they are saved; a
    /// restarted job has them as a file without name). `*` stands for anything but `/`, `**` for anything.
    #[arg(long = "file", value_name = "PATTERN=POLICY", value_parser = parse_file_rule, action = ArgAction::Append)]
    pub files: Vec<FileRule>,
    /// Save the libraries that are mapped, so that a restart does not need the files
    #[arg(long)]
    pub save_libraries: bool,
    /// Save the programs that run, so that a restart does not need the files
    #[arg(long)]
    pub save_executable: bool,
}

impl Contents {
    /// What is saved of programs and libraries.
    pub fn keep(&self) -> Keep {
        Keep {
            libraries: self.save_libraries,
            executables: self.save_executable,
        }
    }
}

/// `cpr checkpoint`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr checkpoint sim
  cpr checkpoint --stop -o /scratch/sim.cpr 4711
  cpr checkpoint -o - sim | ssh other cpr restart -
  cpr checkpoint -o /scratch/pair solver viewer

The job goes on when its memory has been saved, unless --stop or --signal says otherwise. Where the checkpoint fails \
the job goes on, too.")]
pub struct Checkpoint {
    /// Name of a job, or a PID
    #[arg(value_name = "JOB|PID", required_unless_present_any = ["session", "all"])]
    pub target: Option<PathBuf>,
    /// Save every job of yours that runs, one after the other, each as a checkpoint of its own
    ///
    /// With --stop before a machine is shut down; `cpr restart --all` lets them go on. A job that cannot be saved goes
    /// on, and the others are saved all the same.
    #[arg(long, conflicts_with_all = ["target", "more", "session", "output", "signal", "restarted_code"])]
    pub all: bool,
    /// Further jobs, which are saved in the same stop, into a directory with one image for each
    #[arg(value_name = "JOB", requires = "output",
        conflicts_with_all = ["signal", "live", "incremental", "compress", "tcp", "compare", "files"])]
    pub more: Vec<PathBuf>,
    /// Save a POSIX session with all descendants of its processes, instead of a job or process
    #[arg(long, value_name = "SID", value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "target")]
    pub session: Option<i32>,
    /// End the job as soon as the image is complete and on disk
    #[arg(long, conflicts_with = "signal")]
    pub stop: bool,
    /// With --stop or --signal: copy memory while the job still runs, so that it stands still for less time
    ///
    /// It takes longer in all. A job of the native engine that goes on is always saved like this.
    #[arg(long)]
    pub live: bool,
    /// Write the image to this file, or to standard output where it is `-`
    ///
    /// Without this option the image of a job is kept with the job, and that of a process is cpr-PID.cpr in the
    /// current directory.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Send this signal to every process once the image is complete and on disk
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub signal: Option<i32>,
    /// Save only what has changed since the last image of the job, which a restart then needs, too
    ///
    /// The first time, and where the image before is gone, everything is saved. From then on the job's writes are
    /// tracked.
    #[arg(long)]
    pub incremental: bool,
    /// Compress the memory in the image with zstd
    ///
    /// Without a level, what would make the checkpoint take longer is left as it is.
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "fast",
        value_parser = parse_compression)]
    pub compress: Option<Compression>,
    /// Give up, and let the job go on, where it cannot be stopped for the checkpoint within this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    pub timeout: Duration,
    /// What to do with TCP connections to outside the job, instead of what `cpr run` was told (refuse)
    #[arg(long, value_name = "WHAT", value_enum)]
    pub tcp: Option<Tcp>,
    #[command(flatten)]
    pub contents: Contents,
    /// Compare the image with a copy of the job's memory made in the same stop, and fail where a page differs
    ///
    /// For those who doubt. The stop lasts longer by the time fork(2) takes. The image has to go into a file.
    #[arg(long)]
    pub compare: bool,
    /// Do each step when standard input says so, which has to be within this time: `stop`, `save` and `resume`
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, hide = true, requires_all = ["target", "output"],
        conflicts_with_all = ["more", "session", "all", "stop", "signal", "live", "incremental", "compare"])]
    pub steps: Option<Duration>,
    /// Where this command is a process of what is saved: its exit code in a restarted job, for its parent there
    #[arg(long, value_name = "CODE", default_value_t = 0)]
    pub restarted_code: u8,
}

/// `cpr restart`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr restart sim
  cpr restart --detach --name second /scratch/sim.cpr

An argument with a `/` in it or ending in .cpr is an image; every other one is the name of a job, which goes on from \
its newest image that is not damaged. A directory that `cpr checkpoint` has made of several jobs restarts all of them, in \
the background. In the foreground `cpr restart` ends when the job does, with the job's exit code.")]
pub struct Restart {
    /// Name of a job, an image, the directory of several, or `-` for an image on standard input
    #[arg(value_name = "JOB|IMAGE", value_hint = ValueHint::FilePath, required_unless_present = "all")]
    pub source: Option<PathBuf>,
    /// Let every job of yours go on that was ended by a checkpoint or a crash and has an image, in the background
    #[arg(long, conflicts_with_all = ["source", "name", "terminal", "lease"])]
    pub all: bool,
    /// Run in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Name of the job that an image becomes
    #[arg(long)]
    pub name: Option<String>,
    /// End the job when this lease lapses, which a node's agent renews
    #[arg(long, value_name = "FILE", hide = true)]
    pub lease: Option<PathBuf>,
    /// Let the job run when standard input says `go`, which has to be within this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, hide = true, requires_all = ["source", "detach"],
        conflicts_with = "lazy")]
    pub steps: Option<Duration>,
    /// Give the job a new terminal of its own
    #[arg(short, long)]
    pub terminal: bool,
    /// Whether the job gets a PID namespace of its own
    #[arg(long, value_enum, default_value_t = Namespace::Auto)]
    pub namespace: Namespace,
    /// In which control groups the job's processes are, where root restarts them
    #[arg(long, value_enum, default_value_t = CgroupChoice::Saved)]
    pub cgroup: CgroupChoice,
    /// Let the job run at once: memory comes when it is touched, the rest behind it
    ///
    /// Takes root, a PID namespace of the job's own, and the kernel that the image was made under; otherwise all memory
    /// is read first, as without this. The images must stay unchanged until all is read: should one be found damaged
    /// after the job has begun to run, the job is ended. A checkpoint waits until all is read.
    #[arg(long)]
    pub lazy: bool,
}

/// `cpr migrate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr migrate sim node7
  cpr migrate --lazy --ssh 'ssh -p 2222' sim ada@node7

The job's image streams to a `cpr restart` on the other host while the job still runs; it stands still for what it writes \
last, and for the restart. Only when it runs there it ends here; where that fails it goes on here. Its files must be there, \
too, under the same names.")]
pub struct Migrate {
    /// Name of a job
    #[arg(value_name = "JOB")]
    pub job: String,
    /// The host to move it to, as ssh knows it
    #[arg(value_name = "HOST", value_hint = ValueHint::Hostname)]
    pub host: OsString,
    /// Name of the job there, instead of the same one
    #[arg(long)]
    pub name: Option<String>,
    /// Let it run there before its memory is in place, as `cpr restart --lazy` does
    #[arg(long)]
    pub lazy: bool,
    /// Compress memory on the way with zstd
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "fast",
        value_parser = parse_compression)]
    pub compress: Option<Compression>,
    /// The program that reaches the host, with its arguments
    #[arg(
        long,
        value_name = "COMMAND",
        env = "GRIDCPR_SSH",
        hide_env_values = true,
        default_value = "ssh"
    )]
    pub ssh: String,
    /// The `cpr` of the other host
    #[arg(
        long,
        value_name = "PROGRAM",
        env = "GRIDCPR_REMOTE_CPR",
        hide_env_values = true,
        default_value = "cpr"
    )]
    pub cpr: OsString,
    /// Give up, and let the job go on, where it cannot be stopped within this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    pub timeout: Duration,
    /// Give up where nothing moves for this time, or the restart there takes longer
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
    pub patience: Duration,
}

/// Whether a job gets a PID namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Namespace {
    /// As it had when it was checkpointed, and where its PIDs cannot be had otherwise
    Auto,
    /// A namespace of its own
    Always,
    /// The same PIDs in the present namespace, which must be free
    Never,
}

/// In which control groups restarted processes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupChoice {
    /// As far below those of this command as they were below those of whoever saved them
    Saved,
    /// The first one in those of this command, others as far below as they were below the first one
    Own,
}

/// `cpr suspend`, `cpr resume`
#[derive(Debug, Args)]
pub struct Stand {
    /// Name of a job, or a PID, which stands for all its descendants, too
    #[arg(value_name = "JOB|PID", required_unless_present = "session")]
    pub target: Option<PathBuf>,
    /// A POSIX session with all descendants of its processes
    #[arg(long, value_name = "SID", value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "target")]
    pub session: Option<i32>,
}

/// `cpr notify`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cpr notify sim --reason 'node n17 has lost its network'

Callbacks that a program has registered with gridcpr_register() are called with the event GRIDCPR_TOLD. What they do is up \
to the program; without callbacks nothing happens.")]
pub struct Notify {
    #[command(flatten)]
    pub stand: Stand,
    /// What has happened, cut to 255 bytes
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// How long callbacks may take
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    pub timeout: Duration,
}

/// `cpr listen`
#[derive(Debug, Args)]
#[command(after_help = "\
It is started by a script of a job and runs beside it, as long as the script does: it is saved and restarted with it, and prints \
a line for whatever happens.")]
pub struct Listen {
    /// Before a checkpoint wait for a line on standard input: `ready`, `later` or `refuse`, and why
    #[arg(long)]
    pub ask: bool,
}

/// Commands whose only argument is a job.
#[derive(Debug, Args)]
pub struct JobName {
    /// Name of a job
    pub job: String,
}

/// `cpr logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// Name of a job
    pub job: String,
    /// Go on until the job ends
    #[arg(short, long)]
    pub follow: bool,
}

/// `cpr wait`
#[derive(Debug, Args)]
pub struct Wait {
    /// Name of a job
    pub job: String,
    /// Give up after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// `cpr kill`
#[derive(Debug, Args)]
pub struct Kill {
    /// Name of a job; or @ID, a job of a grid, of which the first process of every unit gets the signal
    pub job: String,
    /// Signal, by name or number; KILL goes to all processes of the job, any other to its first one
    #[arg(short, long, value_name = "SIGNAL", value_parser = parse_signal, default_value = "TERM")]
    pub signal: i32,
    /// First have its TCP connections be reset when it ends: their ports are free at once, and what was written and has
    /// not arrived is lost
    #[arg(long)]
    pub reset: bool,
}

/// `cpr engines`
#[derive(Debug, Args)]
pub struct Engines {
    #[command(subcommand)]
    pub verb: Option<EnginesVerb>,
}

/// What to do with engines, other than to list them.
#[derive(Debug, Subcommand)]
pub enum EnginesVerb {
    /// Show everything known of one engine
    Show {
        /// Its name
        name: String,
    },
}

/// `cpr rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// Names of jobs, or images
    #[arg(value_name = "JOB|IMAGE", value_hint = ValueHint::FilePath, required = true)]
    pub targets: Vec<PathBuf>,
    /// Also remove a job that runs, which ends it, or an image that cannot be read or that others need
    #[arg(short, long)]
    pub force: bool,
}

/// `cpr completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `cpr man`
#[derive(Debug, Args)]
pub struct Man {
    /// Directory the pages are written to
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a duration; write for example 30s, 10m or 1h30m".to_string())
}

pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    crate::commands::edit::pair(text).map_err(|error| error.to_string())
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    match text.parse() {
        _ if text == "fast" => Ok(Compression::Fast),
        Ok(level @ 1..=22) => Ok(Compression::Level(level)),
        _ => Err("not a level from 1 (fastest) to 22 (smallest)".to_string()),
    }
}

fn parse_file_rule(text: &str) -> Result<FileRule, String> {
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    FileRule::parse(text, &directory.to_string_lossy()).map_err(|error| match error.hint() {
        Some(hint) => format!("{}; {hint}", error.chain()),
        None => error.chain(),
    })
}

fn parse_keep(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one image has to be kept".to_string()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a number of images".to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_command_run_are_its_own() {
        let Verb::Run(run) = Cli::parse_from(["cpr", "run", "--keep", "2", "ls", "-l", "--json"]).verb else {
            panic!()
        };
        assert_eq!(run.keep, Some(2));
        assert_eq!(run.command, ["ls", "-l", "--json"]);
        let cli = Cli::parse_from(["cpr", "run", "--json", "--", "-odd", "--", "x"]);
        assert!(cli.global.json);
        let Verb::Run(run) = cli.verb else { panic!() };
        assert_eq!(run.command, ["-odd", "--", "x"]);
        assert!(Cli::try_parse_from(["cpr", "run", "--unknown", "ls"]).is_err());
    }

    #[test]
    fn durations() {
        let every = |text: &str| parse_duration(text);
        assert_eq!(every("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(every("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(every("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(every("250ms").unwrap(), Duration::from_millis(250));
        for bad in ["", "10", "s", "-1s", "1x"] {
            assert!(every(bad).is_err(), "{bad}");
        }
    }
}
