//! The operator's detector, which says whether something is wrong with the node (GFD93-EH-9), and telling the programs
//! of jobs of failures (GFD93-EH-4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_api::agent::Incarnation;
use cpr_api::model::Owner;
use cpr_types::ErrorKind;

use super::Agent;
use crate::config::DetectorConfig;
use crate::log;

/// How often it is looked whether the detector is to be run.
const LOOK: Duration = Duration::from_secs(1);
/// How long the callbacks of a job's programs may take, as `cpr` is told.
const CALLBACKS: &str = "2s";
/// Most bytes that they are told.
const LONGEST: usize = 250;
/// How long all of it may take.
const TELL: Duration = Duration::from_secs(5);
/// Pause before a job is told once more that could not be told while it was being saved.
const PAUSE: Duration = Duration::from_millis(200);

impl Agent {
    /// Runs the detector again and again, where there is one.
    pub(super) fn watch_health(self: &Arc<Self>) -> std::io::Result<()> {
        let agent = self.clone();
        let mut last: Option<Instant> = None;
        let watch = move || {
            loop {
                let detector = agent.current.borrow().detector.clone();
                let every = Duration::from_secs(detector.every_s);
                if last.is_none_or(|last| last.elapsed() >= every) {
                    last = Some(Instant::now());
                    let fault = agent.detect(&detector);
                    agent.state().fault = fault;
                }
                std::thread::sleep(LOOK);
            }
        };
        std::thread::Builder::new().name("health".into()).spawn(watch).map(drop)
    }

    /// What is wrong, by the detector; none where nothing is, or nobody looks.
    fn detect(&self, detector: &DetectorConfig) -> Option<String> {
        if detector.command.is_empty() {
            return None;
        }
        let about = [("GRIDCPR_NODE", self.name.clone())];
        let limit = Duration::from_secs(detector.limit_s);
        match self.runner.command(&detector.command, &about, limit) {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                let ended = || format!("the detector ended with {}", output.status);
                Some(last.map_or_else(ended, |line| line.trim().to_string()))
            }
            Err(error) => Some(format!("the detector cannot be asked: {}", error.chain())),
        }
    }

    /// Tells the programs of a job that have callbacks.
    pub(super) fn tell(&self, incarnation: Incarnation, owner: &Owner, text: &str) {
        let name = incarnation.to_string();
        // As much as a program can be told.
        let end = (0..=text.len().min(LONGEST)).rfind(|end| text.is_char_boundary(*end));
        let text = &text[..end.unwrap_or(0)];
        let arguments = ["notify", "--json", "--reason", text, "--timeout", CALLBACKS, &name];
        let began = Instant::now();
        loop {
            match self.cpr(owner, &arguments, TELL) {
                Ok(_) => return,
                Err(error) if error.kind() == ErrorKind::Busy && began.elapsed() < TELL => std::thread::sleep(PAUSE),
                Err(error) if matches!(error.kind(), ErrorKind::Gone | ErrorKind::NotFound) => return,
                Err(error) => return log(format!("telling job {incarnation}: {}", error.chain())),
            }
        }
    }
}
