//! Jobs that were started by hand, on a machine whose init is slow to reap orphans, or never does, as the first process
//! of many containers. What has ended keeps its numbers until then.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use support::{As, Cpr, PATIENCE, poll, wait_until};

/// Adopts orphans, starts a program in a session of its own, and reaps whatever ends once there is a file `reap`.
const INIT: &str = "import ctypes, os, sys, time
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
leader = os.fork()
if leader == 0:
    os.setsid()
    os.execvp(sys.argv[1], sys.argv[1:])
print(leader, flush=True)
while not os.path.exists('reap'): time.sleep(0.01)
try:
    while True: os.wait()
except ChildProcessError: pass
";

/// Such an init, and the leader of the session it has started.
struct Init {
    init: Child,
    leader: String,
}

impl Init {
    fn start(cpr: &Cpr, program: &[&str]) -> Init {
        let mut command = cpr.command("python3");
        command
            .args(["-c", INIT])
            .args(program)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let output = fs::File::create(cpr.work.join("leader")).expect("the test's directory can be written");
        let init = command.stdout(output).spawn().expect("python3 can be started");
        let said = || fs::read_to_string(cpr.work.join("leader")).unwrap_or_default();
        wait_until(PATIENCE, "the program is started", || said().ends_with('\n'));
        Init {
            init,
            leader: said().trim().to_owned(),
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// The session of a process, from /proc/PID/stat.
fn session(entry: &Path) -> Option<String> {
    let text = fs::read_to_string(entry.join("stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(3).map(str::to_owned)
}

/// A restart right after `cpr checkpoint --stop` waits until the processes that were ended are reaped.
#[test]
fn a_restart_waits_for_what_has_ended() {
    let Some(cpr) = Cpr::new("a_restart_waits_for_what_has_ended", As::Root) else {
        return;
    };
    let script = "(sleep 1000; true) & (sleep 1000; true) & echo >started; wait";
    let init = Init::start(&cpr, &["sh", "-c", script]);
    wait_until(PATIENCE, "the tree is there", || cpr.work.join("started").exists());
    let image = cpr.work.join("tree.cpr").display().to_string();
    cpr.cpr(["checkpoint", "--stop", "-o", &image, &init.leader]).good();
    let mut restart = cpr.command(cpr.binary());
    restart.args(["restart", "-d", "--namespace", "never", "--name", "again", &image]);
    let mut restart = restart.spawn().expect("cpr can be started");
    let until = Instant::now() + Duration::from_millis(500);
    let ended = poll(Duration::from_millis(500), || {
        restart.try_wait().expect("a child can be waited for")
    });
    assert!(
        ended.is_none() && Instant::now() >= until,
        "it does not wait: {ended:?}"
    );
    fs::write(cpr.work.join("reap"), "").expect("the test's directory can be written");
    let ended = poll(PATIENCE, || restart.try_wait().expect("a child can be waited for"));
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    assert!(cpr.is_running("again"));
    cpr.cpr(["rm", "--force", "again"]).good();
}

/// The snapshots that checkpoints of a fast writer are made from hold nothing of the job's in use when they have ended.
#[test]
fn snapshots_leave_the_session_of_the_job() {
    let Some(cpr) = Cpr::new("snapshots_leave_the_session_of_the_job", As::Root) else {
        return;
    };
    let writer = "n = 0\nm = bytearray(1 << 26)\nopen('started', 'w')\nwhile True:\n for i in range(0, len(m), 4096): m[i] = n & 255\n n += 1";
    let init = Init::start(&cpr, &["python3", "-c", writer]);
    wait_until(PATIENCE, "it writes", || cpr.work.join("started").exists());
    let image = cpr.work.join("writer.cpr").display().to_string();
    let compared = cpr.cpr(["checkpoint", "--json", "--compare", "-o", &image, &init.leader]);
    assert!(
        compared.good().json()["compared_pages"].as_u64() > Some(0),
        "no snapshot was made"
    );
    let processes = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let members: Vec<String> = processes
        .filter(|entry| session(&entry.path()).as_ref() == Some(&init.leader))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(members, std::slice::from_ref(&init.leader));
    cpr.program(&["kill", "-KILL", &init.leader]).good();
}
