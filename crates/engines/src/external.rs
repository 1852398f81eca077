//! An engine that is any program: requests and answers are lines of JSON on its standard input and output.
//!
//! `docs/engines.md` describes the protocol. Nothing that the program says is believed where it can be looked at.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::descriptor::{Deadlines, Descriptor};
use crate::engine::{Engine, Group, GroupKind, Rebuilt, Unit};
use crate::program::{Program, streams};

/// The protocol that is spoken.
const PROTOCOL: u32 = 1;

/// An external engine at work.
pub(crate) struct External {
    command: Vec<OsString>,
    deadlines: Deadlines,
    program: Option<Program>,
}

/// What a program answers.
#[derive(Debug, Deserialize)]
struct Answer {
    step: String,
    ok: bool,
    error: Option<String>,
    version: Option<String>,
    group: Option<AnsweredGroup>,
    root: Option<i32>,
}

#[derive(Debug, Deserialize)]
struct AnsweredGroup {
    kind: GroupKind,
    id: String,
    processes: Vec<i32>,
}

#[derive(Serialize)]
struct Request<'a> {
    step: &'a str,
    protocol: u32,
    #[serde(flatten)]
    more: Value,
}

impl External {
    pub(crate) fn new(descriptor: &Descriptor) -> External {
        External {
            command: descriptor.command(&[]),
            deadlines: descriptor.deadlines.clone(),
            program: None,
        }
    }

    /// Asks whether it works here; gives its version.
    pub(crate) fn probe(descriptor: &Descriptor) -> Result<Option<String>> {
        let mut engine = External::new(descriptor);
        engine.begin(descriptor.command(&[]))?;
        let limit = engine.deadlines.probe();
        let answer = engine.ask("probe", json!({}), limit)?;
        engine.end();
        Ok(answer.version)
    }

    fn begin(&mut self, command: Vec<OsString>) -> Result<()> {
        self.command = command;
        self.program = Some(Program::start(&self.command)?);
        Ok(())
    }

    /// Its work is done. What it has started stays.
    fn end(&mut self) {
        if let Some(program) = self.program.take() {
            // It has said that all is well, and is not needed any more.
            let _ = program.finish(Instant::now() + self.deadlines.resume());
        }
    }

    fn ask(&mut self, step: &str, more: Value, limit: Duration) -> Result<Answer> {
        let deadline = Instant::now() + limit;
        let program = self.program.as_mut();
        let program = program.ok_or_else(|| Error::new(ErrorKind::Gone, "the engine has ended"))?;
        let request = Request {
            step,
            protocol: PROTOCOL,
            more,
        };
        let line = serde_json::to_string(&request)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode a request").with_source(error))?;
        program.tell(&line, deadline)?;
        let line = program.line(deadline)?;
        let answer: Answer = serde_json::from_str(&line).map_err(|error| {
            let shown: String = line.chars().take(60).collect();
            program.garbage(&format!("its answer is not understood ({error}): {shown:?}"))
        })?;
        if answer.step != step {
            return Err(program.garbage(&format!("it was asked to {step}, and answers {:?}", answer.step)));
        }
        if !answer.ok {
            let why = answer.error.as_deref().unwrap_or("it gave no reason");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        Ok(answer)
    }
}

impl Engine for External {
    fn prepare(&mut self, unit: &Unit) -> Result<Group> {
        self.begin(crate::descriptor::fill(&self.command, unit))?;
        let answer = self.ask("prepare", describe(unit), self.deadlines.prepare())?;
        let group = answer
            .group
            .ok_or_else(|| Error::new(ErrorKind::Io, "its answer names no group"))?;
        Ok(Group {
            kind: group.kind,
            id: group.id,
            processes: group.processes,
        })
    }

    fn stop(&mut self) -> Result<()> {
        self.ask("stop", json!({}), self.deadlines.stop()).map(drop)
    }

    fn holds(&self) -> bool {
        true
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.ask("checkpoint", json!({}), self.deadlines.checkpoint()).map(drop)
    }

    fn resume_after_checkpoint(&mut self) -> Result<()> {
        self.ask("resume_after_checkpoint", json!({}), self.deadlines.resume())?;
        self.end();
        Ok(())
    }

    fn abandon(&mut self) {
        // Killed: who has failed is not asked for more.
        self.program = None;
    }

    fn rebuild(&mut self, unit: &Unit) -> Result<Rebuilt> {
        // The program has them open under the same numbers.
        let streams = streams()?;
        self.begin(crate::descriptor::fill(&self.command, unit))?;
        let mut request = describe(unit);
        request["streams"] = streams.iter().map(AsRawFd::as_raw_fd).collect();
        drop(streams);
        let answer = self.ask("rebuild", request, self.deadlines.rebuild())?;
        let root = answer
            .root
            .ok_or_else(|| Error::new(ErrorKind::Io, "its answer names no root process"))?;
        Ok(Rebuilt::Root(root))
    }

    fn resume_after_restart(&mut self) -> Result<()> {
        self.ask("resume_after_restart", json!({}), self.deadlines.resume())?;
        self.end();
        Ok(())
    }
}

fn describe(unit: &Unit) -> Value {
    json!({
        "job": unit.job,
        "root": unit.root,
        "processes": unit.processes,
        "files": unit.files,
        "job_directory": unit.job_directory,
        "cgroup": unit.group,
    })
}
