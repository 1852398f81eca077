//! A command that is told step by step what to do.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::Cpr;

/// The command.
pub struct Steps {
    pub child: Child,
    words: Option<ChildStdin>,
    pub said: Lines<BufReader<ChildStdout>>,
}

impl Steps {
    /// `cpr` with these arguments, in the test's directory.
    pub fn new(cpr: &Cpr, arguments: &[&str]) -> Steps {
        let mut command = cpr.command(cpr.binary());
        command
            .args(arguments)
            .current_dir(&cpr.work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Steps {
            words: child.stdin.take(),
            said: said.lines(),
            child,
        }
    }

    /// What it says next.
    #[track_caller]
    pub fn says(&mut self, step: &str) {
        assert_eq!(self.said.next().unwrap().unwrap(), step);
    }

    /// The same with `--json`: which connections it tells of.
    #[track_caller]
    pub fn says_with(&mut self, step: &str) -> serde_json::Value {
        let line = self.said.next().unwrap().unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(said["step"], step, "{line}");
        said["connections"].clone()
    }

    pub fn say(&mut self, word: &str) {
        Write::write_all(self.words.as_mut().unwrap(), format!("{word}\n").as_bytes()).unwrap();
    }

    /// Nobody tells it anything any more; gives its exit code.
    pub fn end(self) -> i32 {
        self.end_with().0
    }

    /// The same, and what it has complained of.
    pub fn end_with(mut self) -> (i32, String) {
        self.words = None;
        let mut complaints = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut complaints).unwrap();
        }
        (self.child.wait().unwrap().code().unwrap(), complaints)
    }
}
