//! `cpr-bench`: measures the `cpr` command from outside, as a user would see it.
//!
//! It knows nothing of the engine: it starts victims under `cpr`, and their heartbeat in shared memory tells how long
//! they stood still. What every figure means is in `docs/performance.md`. All that it starts is ended with it, also on
//! Ctrl-C and after errors.

mod cases;
mod command;
mod dmtcp;
mod heartbeat;
mod interrupt;
mod limit;
mod machine;
mod measure;
mod memory;
mod report;
mod svg;
mod tool;
mod usage;
mod victim;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use cpr_types::{Context, Error, ErrorKind, Result};
use tempfile::TempDir;

use crate::cases::Case;
use crate::dmtcp::Dmtcp;
use crate::machine::{FileSystem, Machine};
use crate::measure::Measurement;
use crate::report::{Outcome, Place, Report, ToolVersion};
use crate::tool::{Cpr, Criu, Tool};

/// Measure checkpoint and restart
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    victim: Option<Hidden>,
    /// The cpr to measure, instead of the one beside this program
    #[arg(long, value_name = "PROGRAM")]
    cpr: Option<PathBuf>,
    /// Write images below this directory; may be given several times
    ///
    /// Without it, images go to /dev/shm (memory) and /var/tmp (a disk, mostly).
    #[arg(long = "directory", value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,
    /// Timed rounds of each case
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Only three small cases
    #[arg(long)]
    quick: bool,
    /// Only this case; may be given several times
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// List the cases
    #[arg(long)]
    list: bool,
    /// Measure the same cases with another tool in the same run; may be given several times
    ///
    /// criu=PROGRAM, or dmtcp=PROGRAM with the path of dmtcp_launch.
    #[arg(long = "peer", value_name = "NAME=PROGRAM", value_parser = parse_peer)]
    peers: Vec<Peer>,
    /// Say this of the measured version, such as its commit
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Write all samples to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a bar plot to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Put the tables into this Markdown file, between the marks an earlier run has left
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// What the bench starts of itself.
#[derive(Debug, Subcommand)]
enum Hidden {
    /// The program that is checkpointed
    #[command(hide = true)]
    Victim(victim::Victim),
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cpr,
    Criu,
    Dmtcp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Cpr => "cpr",
            Kind::Criu => "criu",
            Kind::Dmtcp => "dmtcp",
        }
    }
}

/// A tool and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    kind: Kind,
    program: PathBuf,
}

fn parse_peer(text: &str) -> Result<Peer, String> {
    let known = [Kind::Criu, Kind::Dmtcp];
    let found = text.split_once('=').and_then(|(name, program)| {
        let kind = known.into_iter().find(|kind| kind.name() == name)?;
        (!program.is_empty()).then(|| Peer {
            kind,
            program: program.into(),
        })
    });
    found.ok_or_else(|| "the peers that are known are criu=PROGRAM and dmtcp=PROGRAM".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.victim {
        Some(Hidden::Victim(victim)) => victim::run(victim).map(|()| true),
        None => bench(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("cpr-bench: error: {}", error.chain()));
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// To standard error; nobody is left to tell when that fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .context(|| "write to standard output")
}

/// Everything; false when a case failed with `cpr`.
fn bench(arguments: &Arguments) -> Result<bool> {
    let cases = chosen(arguments)?;
    if arguments.list {
        let lines: Vec<String> = cases
            .iter()
            .map(|case| format!("{:14} {}\n", case.name, case.title))
            .collect();
        return print(&lines.concat()).map(|()| true);
    }
    // What this process has from its parent is no business of victims.
    cpr_kernel::spawn::close_others_on_exec().context(|| "mark descriptors")?;
    interrupt::listen()?;
    let cpr = own_program(arguments)?;
    let mut report = Report {
        machine: Machine::here(),
        tools: vec![ToolVersion {
            name: "cpr".into(),
            version: version(&cpr)?,
        }],
        label: arguments.label.clone(),
        runs: arguments.runs.into(),
        places: Vec::new(),
        results: Vec::new(),
        missing: Vec::new(),
    };
    say(&report.machine.line());
    let mut tools = vec![Peer {
        kind: Kind::Cpr,
        program: cpr,
    }];
    for wanted in &arguments.peers {
        tools.extend(peer(wanted, &mut report));
    }
    let result = measure_all(arguments, &cases, &tools, &mut report);
    // What was measured before Ctrl-C is not thrown away.
    let finished = result.is_ok();
    print(&report.plain())?;
    if let Some(path) = &arguments.json {
        let text = report.json().map_err(std::io::Error::from).context(|| "make JSON")?;
        save(path, &text)?;
    }
    if let Some(path) = &arguments.svg {
        save(path, &svg::plot(&report))?;
    }
    if let (Some(path), true) = (&arguments.markdown, finished) {
        let document = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.context(|| format!("read {}", path.display()))?,
        };
        save(path, &report::insert(&document, &report.markdown()))?;
    }
    result?;
    Ok(report
        .results
        .iter()
        .all(|outcome| outcome.tool != "cpr" || outcome.error.is_none()))
}

fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("write {}", path.display()))
}

fn chosen(arguments: &Arguments) -> Result<Vec<Case>> {
    let all = cases::all();
    for name in &arguments.cases {
        if !all.iter().any(|case| case.name == name) {
            let error = Error::new(
                ErrorKind::Usage,
                format!("there is no case {name}; `cpr-bench --list` lists them"),
            );
            return Err(error);
        }
    }
    let is_chosen = |case: &Case| {
        (arguments.cases.is_empty() || arguments.cases.iter().any(|name| name == case.name))
            && (!arguments.quick || case.quick)
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}

fn own_program(arguments: &Arguments) -> Result<PathBuf> {
    let program = match &arguments.cpr {
        Some(program) => program.clone(),
        None => std::env::current_exe()
            .context(|| "find this program")?
            .with_file_name("cpr"),
    };
    std::fs::canonicalize(&program).context(|| format!("find {}", program.display()))
}

fn version(program: &Path) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("--version");
    Ok(command::run(command, tool::PATIENCE)?.output.trim().to_owned())
}

/// The peer, where it works here.
fn peer(wanted: &Peer, report: &mut Report) -> Option<Peer> {
    let kind = wanted.kind;
    let found = std::fs::canonicalize(&wanted.program).context(|| format!("find {}", wanted.program.display()));
    let check = |program: PathBuf| {
        let version = match kind {
            Kind::Dmtcp => Dmtcp::check(&program),
            Kind::Cpr | Kind::Criu => Criu::check(&program),
        };
        version.map(|version| (program, version))
    };
    match found.and_then(check) {
        Ok((program, version)) => {
            report.tools.push(ToolVersion {
                name: kind.name().into(),
                version,
            });
            Some(Peer { kind, program })
        }
        Err(error) => {
            leave_out(report, format!("{}, in all cases: {}", kind.name(), error.chain()));
            None
        }
    }
}

/// Says at once and in the report what is not measured.
fn leave_out(report: &mut Report, text: String) {
    say(&format!("NOT MEASURED: {text}"));
    report.missing.push(text);
}

fn measure_all(arguments: &Arguments, cases: &[Case], tools: &[Peer], report: &mut Report) -> Result<()> {
    let usual = [PathBuf::from("/dev/shm"), PathBuf::from("/var/tmp")];
    let given = &arguments.directories;
    let directories: &[PathBuf] = if given.is_empty() { &usual } else { given };
    for directory in directories {
        let index = report.places.len();
        let file_system = FileSystem::of(directory);
        report.places.push(Place {
            directory: directory.clone(),
            file_system: file_system.clone(),
        });
        for case in cases {
            if let Some(lack) = lack(case, directory, &file_system) {
                leave_out(report, format!("{} in {}: {lack}", case.title, directory.display()));
                continue;
            }
            for tool in tools {
                let name = tool.kind.name();
                say(&format!("{} on {} with {name} …", case.title, file_system.kind));
                let result = measure_one(arguments, case, directory, tool);
                let (figures, error) = match result {
                    Ok(figures) => (Some(figures), None),
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                    Err(error) => {
                        say(&format!("FAILED: {}", error.chain()));
                        (None, Some(error.chain()))
                    }
                };
                report.results.push(Outcome {
                    case: case.name.to_owned(),
                    title: case.title.to_owned(),
                    place: index,
                    tool: name.to_owned(),
                    figures,
                    error,
                });
            }
        }
    }
    Ok(())
}

/// What there is too little of: memory for the victim, and for images that are memory, or space.
fn lack(case: &Case, directory: &Path, file_system: &FileSystem) -> Option<String> {
    /// For programs and buffers, bytes.
    const REST: u64 = 512 << 20;
    // One image, or one file of the same size, at a time.
    let images = case.bytes;
    let memory = case.bytes + REST + if file_system.is_memory() { images } else { 0 };
    let found = machine::available_memory();
    if found < memory {
        return Some(format!(
            "{} MiB of memory needed, {} available",
            memory >> 20,
            found >> 20
        ));
    }
    let (space, found) = (images + REST, machine::free_space(directory));
    (found < space).then(|| format!("{} MiB of space needed, {} free", space >> 20, found >> 20))
}

fn measure_one(arguments: &Arguments, case: &Case, directory: &Path, measured: &Peer) -> Result<measure::Figures> {
    let place = temporary(directory)?;
    let memory = Path::new("/dev/shm");
    let memory_place = temporary(if FileSystem::of(memory).is_memory() {
        memory
    } else {
        directory
    })?;
    let program = &measured.program;
    let (mut cpr, mut criu, mut dmtcp);
    let tool: &mut dyn Tool = match measured.kind {
        Kind::Cpr => {
            cpr = Cpr::new(program, place.path(), case);
            &mut cpr
        }
        Kind::Criu => {
            criu = Criu::new(program, place.path())?;
            &mut criu
        }
        Kind::Dmtcp => {
            dmtcp = Dmtcp::new(program, place.path())?;
            &mut dmtcp
        }
    };
    let measurement = Measurement {
        case,
        tool,
        place: place.path(),
        memory_place: memory_place.path(),
        runs: arguments.runs.into(),
    };
    measurement.run()
}

fn temporary(directory: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("cpr-bench-")
        .tempdir_in(directory)
        .context(|| format!("make a directory in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
        assert!(parse_peer("criu=/usr/sbin/criu").is_ok());
        assert!(parse_peer("dmtcp=/usr/bin/dmtcp_launch").is_ok());
        assert!(parse_peer("blcr=/usr/bin/cr_run").is_err());
        assert!(parse_peer("criu=").is_err());
    }

    #[test]
    fn cases_have_names_of_their_own() {
        let names: std::collections::HashSet<&str> = cases::all().iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases::all().len());
        assert!(cases::all().iter().filter(|case| case.quick).count() >= 3);
    }
}
