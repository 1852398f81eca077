//! Programs that put themselves into some state and, when told so, check that they are still in it.

#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cpr, PATIENCE, finish, wait_until};

/// Compiles `tests/victims/NAME.c` into the test's directory.
pub fn compile(cpr: &Cpr, name: &str) -> PathBuf {
    compile_with(cpr, name, "cc", &[]).expect("a compiler")
}

/// The same by another compiler or with further options; none where there is no such compiler.
pub fn compile_with(cpr: &Cpr, name: &str, compiler: &str, options: &[&str]) -> Option<PathBuf> {
    if Command::new(compiler).arg("--version").output().is_err() {
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/victims")
        .join(name)
        .with_extension("c");
    let program = cpr.work.join(name);
    let mut command = Command::new(compiler);
    command.args(options).args([
        "-std=gnu11",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        "-o",
    ]);
    command.arg(&program).arg(source);
    finish(&cpr.work, command, PATIENCE).good();
    cpr.give(&program);
    Some(program)
}

/// A job of a victim.
pub struct Victim<'a> {
    cpr: &'a Cpr,
    /// Its name.
    pub job: &'static str,
    go: PathBuf,
}

impl<'a> Victim<'a> {
    /// Starts a victim and waits until its state is set up.
    pub fn start(cpr: &'a Cpr, program: &Path, job: &'static str, arguments: &[&str]) -> Victim<'a> {
        Victim::start_with(cpr, program, job, arguments, &[])
    }

    /// The same, with options for `cpr run`. A victim that cannot do its work on this machine says `MISSING` and why.
    pub fn start_with(
        cpr: &'a Cpr,
        program: &Path,
        job: &'static str,
        arguments: &[&str],
        options: &[&str],
    ) -> Victim<'a> {
        let go = cpr.work.join(format!("go-{job}"));
        let mut command = vec![program.as_os_str(), go.as_os_str()];
        command.extend(arguments.iter().map(OsStr::new));
        cpr.run_detached(job, options, &command);
        let victim = Victim { cpr, job, go };
        wait_until(PATIENCE, "the victim is ready", || {
            let said = victim.said();
            assert!(!said.contains("FAIL"), "{job}: {said}");
            said.contains("READY") || said.contains("MISSING")
        });
        victim
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.cpr.logs(self.job)).into_owned()
    }

    /// Has the victim check itself.
    pub fn check(&self) {
        fs::write(&self.go, "").expect("the test's directory can be written");
        let code = self.cpr.wait(self.job);
        let said = self.said();
        assert!(
            code == 0 && said == "READY\nOK\n",
            "{} ended with {code}: {said}",
            self.job
        );
    }
}
