//! The cases: which victims.
//!
//! A new case is a row of [`all`]. One in which the tool is used in another way, with another kind of image or of
//! restart, needs a field of [`Case`] that [`crate::tool::Cpr`] is made with.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::command::run;
use crate::memory::Content;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Who is checkpointed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The victim of this crate.
    Own,
    /// Python with numpy.
    Numpy,
    /// A Java virtual machine.
    Java,
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Short name for `--case`.
    pub name: &'static str,
    /// What it says in tables.
    pub title: &'static str,
    /// Who.
    pub program: Program,
    /// Memory in all, bytes.
    pub bytes: u64,
    /// What is in it.
    pub content: Content,
    /// Megabytes (10^6) rewritten in a second.
    pub write_mb_s: u64,
    /// Threads of the first process that do nothing, and the one that beats.
    pub threads: u64,
    /// Processes in all.
    pub processes: u64,
    /// Belongs to `--quick`.
    pub quick: bool,
    /// It is restarted with `--lazy`.
    pub lazy: bool,
    /// Where not zero, the checkpoint after which the victim goes on is an increment, made when so many percent of the
    /// memory have been written since an image before.
    pub rewrite_percent: u64,
}

impl Case {
    const fn new(name: &'static str, title: &'static str, bytes: u64) -> Case {
        Case {
            name,
            title,
            program: Program::Own,
            bytes,
            content: Content::Random,
            write_mb_s: 0,
            threads: 1,
            processes: 1,
            quick: false,
            lazy: false,
            rewrite_percent: 0,
        }
    }

    /// The command of the victim; `place` is where a program can be built.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where an interpreter is missing.
    pub fn victim(&self, page: &Path, place: &Path) -> Result<Vec<OsString>> {
        let mut words: Vec<OsString> = Vec::new();
        match self.program {
            Program::Own => {
                let program = std::env::current_exe().context(|| "find this program")?;
                words.extend([program.into(), "victim".into(), "--heartbeat".into(), page.into()]);
                let content = match self.content {
                    Content::Random => "random",
                    Content::Zero => "zero",
                    Content::Equal => "equal",
                };
                for (option, value) in [
                    ("--bytes", self.bytes.to_string()),
                    ("--content", content.to_owned()),
                    ("--write-mb-s", self.write_mb_s.to_string()),
                    ("--rewrite-percent", self.rewrite_percent.to_string()),
                    ("--threads", self.threads.to_string()),
                    ("--processes", self.processes.to_string()),
                ] {
                    words.extend([option.into(), value.into()]);
                }
            }
            Program::Numpy => {
                let script = place.join("heartbeat.py");
                write(&script, include_str!("../victims/heartbeat.py"))?;
                words.extend([
                    python()?.into(),
                    script.into(),
                    page.into(),
                    self.bytes.to_string().into(),
                ]);
            }
            Program::Java => {
                let source = place.join("Victim.java");
                write(&source, include_str!("../victims/Victim.java"))?;
                let mut compiler = Command::new("javac");
                compiler.arg("-d").arg(place).arg(&source);
                run(compiler, INTERPRETER)?;
                let heap = format!("-Xmx{}m", self.bytes / MIB * 2);
                words.extend(["java".into(), heap.into(), "-cp".into(), place.into(), "Victim".into()]);
                words.extend([page.into(), self.bytes.to_string().into()]);
            }
        }
        Ok(words)
    }
}

/// How long a compiler or interpreter may take to start.
const INTERPRETER: Duration = Duration::from_secs(120);

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("write {}", path.display()))
}

/// A Python that has numpy.
fn python() -> Result<PathBuf> {
    for python in ["/usr/bin/python3", "python3"] {
        let mut command = Command::new(python);
        command.args(["-c", "import numpy"]);
        if run(command, INTERPRETER).is_ok() {
            return Ok(python.into());
        }
    }
    Err(Error::new(ErrorKind::NotFound, "no python3 with numpy"))
}

/// All cases, in the order of the tables.
pub fn all() -> Vec<Case> {
    let gib = |name, title| Case::new(name, title, GIB);
    let writing = |name, title, write_mb_s| Case {
        write_mb_s,
        ..gib(name, title)
    };
    vec![
        Case {
            quick: true,
            ..Case::new("5mb", "5 MB", 5_000_000)
        },
        Case {
            quick: true,
            ..Case::new("256mib", "256 MiB", 256 * MIB)
        },
        gib("1gib", "1 GiB"),
        Case::new("4gib", "4 GiB", 4 * GIB),
        Case {
            rewrite_percent: 1,
            ..gib("increment1", "1 GiB, increment of 1 %")
        },
        Case {
            rewrite_percent: 10,
            ..gib("increment10", "1 GiB, increment of 10 %")
        },
        Case {
            lazy: true,
            ..gib("lazy1gib", "1 GiB, lazy restart")
        },
        Case {
            lazy: true,
            ..Case::new("lazy4gib", "4 GiB, lazy restart", 4 * GIB)
        },
        Case {
            content: Content::Zero,
            ..gib("zero", "1 GiB, 90 % zero pages")
        },
        Case {
            content: Content::Equal,
            ..gib("equal", "1 GiB, 90 % equal pages")
        },
        writing("write50", "1 GiB, 50 MB/s written", 50),
        writing("write500", "1 GiB, 500 MB/s written", 500),
        writing("write2000", "1 GiB, 2000 MB/s written", 2000),
        Case {
            processes: 50,
            ..Case::new("processes50", "50 processes, 50 MiB", 50 * MIB)
        },
        Case {
            threads: 64,
            quick: true,
            ..Case::new("threads64", "64 threads, 16 MiB", 16 * MIB)
        },
        Case {
            threads: 1000,
            ..Case::new("threads1000", "1000 threads, 16 MiB", 16 * MIB)
        },
        Case {
            program: Program::Numpy,
            ..Case::new("numpy", "Python with numpy, 256 MiB", 256 * MIB)
        },
        Case {
            program: Program::Java,
            ..Case::new("java", "Java, 256 MiB", 256 * MIB)
        },
    ]
}
