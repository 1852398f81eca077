//! A PostgreSQL server for tests, from Debian's package.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its own part of this module"
)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A PostgreSQL server, gone with this.
pub struct Postgres {
    tools: PathBuf,
    directory: tempfile::TempDir,
    databases: AtomicU64,
}

impl Postgres {
    /// The one that all tests share that run at the same time.
    pub fn shared() -> Option<Arc<Postgres>> {
        static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut known = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = known.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Postgres::start()?);
        *known = Arc::downgrade(&server);
        Some(server)
    }

    pub fn start() -> Option<Postgres> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let tools = versions
            .flatten()
            .map(|v| v.path().join("bin"))
            .find(|bin| bin.join("initdb").exists())?;
        let server = Postgres {
            tools,
            directory: tempfile::tempdir().unwrap(),
            databases: AtomicU64::new(0),
        };
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            let status = Command::new("chown")
                .arg("postgres")
                .arg(server.path())
                .status()
                .unwrap();
            assert!(status.success());
        }
        server.tool(
            "initdb",
            &["-U", "cpr", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"],
        );
        server.go_on();
        Some(server)
    }

    /// Starts the server, at first or after [`Postgres::crash`].
    pub fn go_on(&self) {
        let options = format!("-k {} -h '' -F", self.path());
        let log = format!("{}/log", self.path());
        self.tool("pg_ctl", &["-w", "-o", &options, "-l", &log, "start"]);
    }

    /// Ends the server as if its machine had crashed.
    pub fn crash(&self) {
        self.tool("pg_ctl", &["-w", "-m", "immediate", "stop"]);
    }

    fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// A new, empty database.
    pub fn database(&self) -> String {
        let name = format!("grid{}", self.databases.fetch_add(1, Ordering::SeqCst));
        let status = Command::new(self.tools.join("createdb"))
            .args(["-h", self.path(), "-U", "cpr", &name])
            .status();
        assert!(status.unwrap().success(), "createdb");
        format!("postgres://cpr@{}/{name}", self.path().replace('/', "%2F"))
    }

    fn tool(&self, name: &str, arguments: &[&str]) {
        let program = self.tools.join(name);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let data = self.directory.path().join("data");
        command.arg("-D").arg(data).args(arguments).current_dir("/");
        // A file: the server that is started keeps its standard streams.
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("tools"))
            .unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let good = command.status().unwrap().success();
        let told = |file| std::fs::read_to_string(self.directory.path().join(file)).unwrap_or_default();
        assert!(good, "{name}: {}{}", told("tools"), told("log"));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
    }
}
