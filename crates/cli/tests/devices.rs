//! Plug-ins for devices that the engine does not know.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{As, Cpr, Ended, PATIENCE, note_skip, wait_until};

/// `Unsupported`, `Denied` and `Incompatible` of docs/exit-codes.md.
const UNSUPPORTED: i32 = 69;
const DENIED: i32 = 77;
const INCOMPATIBLE: i32 = 78;
/// What nobody else asks for, microseconds.
const LATENCY: &str = "17";

/// `cpr` with a directory of configuration.
struct Lab {
    cpr: Cpr,
    config: PathBuf,
}

impl Lab {
    fn new(test: &str, user: As) -> Option<Lab> {
        let cpr = Cpr::new(test, user)?;
        let config = cpr.work.join("config");
        Some(Lab { cpr, config })
    }

    fn cpr(&self, arguments: &[&str]) -> Ended {
        self.cpr.cpr_with_config(&self.config, arguments)
    }

    /// Puts a file into the directory of plug-ins.
    fn add(&self, name: &str, text: &str, mode: u32) {
        let directory = self.config.join("devices.d");
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&self.config, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for path in [self.config.as_path(), &directory, &path] {
            self.cpr.give(path);
        }
    }

    fn last(&self, job: &str) -> String {
        let said = String::from_utf8_lossy(&self.cpr.logs(job)).into_owned();
        said.lines().last().unwrap_or_default().to_string()
    }

    fn lines(&self, job: &str) -> usize {
        self.cpr.logs(job).split(|byte| *byte == b'\n').count()
    }

    /// The job gets on.
    #[track_caller]
    fn goes_on(&self, job: &str) {
        let had = self.lines(job);
        wait_until(PATIENCE, "it goes on", || self.lines(job) > had + 3);
    }

    fn end(&self, job: &str) {
        self.cpr(&["kill", "-s", "KILL", job]).good();
        self.cpr.wait(job);
    }
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/device");
    fs::read_to_string(path.join(name)).unwrap()
}

/// Says all the time what the processors may take at most to wake up, which it has asked for itself.
const ASKS: &str = "
import os, struct, sys, time
device = os.open('/dev/cpu_dma_latency', os.O_RDWR)
os.write(device, struct.pack('=i', int(sys.argv[1])))
while True:
    print(struct.unpack('=i', os.pread(device, 4, 0))[0], flush=True)
    time.sleep(0.02)";

// LBNL-2.4.10, LBNL-3.9.1.M24
#[test]
fn a_device_is_refused_by_its_path_and_saved_and_restored_by_a_plugin() {
    let test = "a_device_is_refused_by_its_path";
    let Some(lab) = Lab::new(test, As::Root) else { return };
    if !Path::new("/dev/cpu_dma_latency").exists() {
        return note_skip(test, "there is no /dev/cpu_dma_latency");
    }
    let run = [
        "run",
        "-d",
        "--name",
        "asks",
        "--",
        "/usr/bin/python3",
        "-c",
        ASKS,
        LATENCY,
    ];
    lab.cpr(&run).good();
    wait_until(PATIENCE, "it has asked", || lab.last("asks") == LATENCY);
    for verb in ["check", "checkpoint"] {
        let refused = lab.cpr(&[verb, "asks"]);
        assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
        let said = refused
            .stdout
            .iter()
            .chain(refused.stderr.as_bytes())
            .copied()
            .collect();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("/dev/cpu_dma_latency"), "{said}");
    }
    lab.goes_on("asks");
    let (toml, program) = (example("cpu-dma-latency.toml"), example("cpu_dma_latency.py"));
    // One that fails harms nothing, and what it says is told.
    lab.add("cpu-dma-latency.toml", &toml, 0o644);
    lab.add("cpu_dma_latency.py", "#!/bin/sh\necho not today >&2\nexit 1\n", 0o755);
    let failed = lab.cpr(&["checkpoint", "asks"]);
    assert_eq!(failed.code, UNSUPPORTED, "{}", failed.stderr);
    assert!(failed.stderr.contains("not today"), "{}", failed.stderr);
    lab.goes_on("asks");
    lab.add("cpu_dma_latency.py", &program, 0o755);
    let listed = lab.cpr(&["devices", "--json"]).good().json();
    assert_eq!(listed["devices"][0]["name"], "cpu-dma-latency", "{listed}");
    lab.cpr(&["check", "asks"]).good();
    let image = lab.cpr.work.join("asks.cpr");
    let image = image.to_str().unwrap();
    lab.cpr(&["checkpoint", "--stop", "-o", image, "asks"]).good();
    let (before, file) = (lab.lines("asks"), lab.config.join("devices.d/cpu-dma-latency.toml"));
    // Without it there is no restart, and nothing is left of one.
    fs::remove_file(&file).unwrap();
    for arguments in [&["check", image][..], &["restart", "-d", "--name", "again", image]] {
        let refused = lab.cpr(arguments);
        assert_eq!(refused.code, INCOMPATIBLE, "{}", refused.stderr);
    }
    lab.add("cpu-dma-latency.toml", &toml, 0o644);
    lab.cpr(&["check", image]).good();
    // There is one of it for all, sandboxes, too.
    let refused = lab.cpr(&["verify", "--restore", image]);
    assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("/dev/cpu_dma_latency (plug-in cpu-dma-latency)"),
        "{}",
        refused.stderr
    );
    lab.cpr(&["restart", "-d", "--name", "again", image]).good();
    wait_until(PATIENCE, "it goes on", || lab.lines("again") > 3);
    assert_eq!(
        lab.last("again"),
        LATENCY,
        "as it was asked for before, {before} times told"
    );
    lab.end("again");
}

// LBNL-2.4.10
#[test]
fn a_device_without_state_is_opened_again_for_a_user() {
    let Some(lab) = Lab::new("a_device_without_state_is_opened_again", As::User) else {
        return;
    };
    let test = "a_device_without_state_is_opened_again";
    let node = lab.cpr.work.join("fuse");
    let made = Command::new("mknod")
        .arg(&node)
        .args(["-m", "666", "c", "10", "229"])
        .output()
        .unwrap();
    if !made.status.success() || fs::File::open(&node).is_err() {
        return note_skip(test, "needs a device that a user may open: only root can make the node");
    }
    let program = "
import os, sys, time
device = os.open(sys.argv[1], os.O_RDWR)
while True:
    print(os.readlink('/proc/self/fd/%d' % device), flush=True)
    time.sleep(0.02)";
    let node = node.to_str().unwrap();
    let toml = format!("name = 'fuse'\npaths = ['{}/f*e']\n", lab.cpr.work.display());
    lab.add("open-for-all.toml", &toml, 0o666);
    lab.cpr(&[
        "run",
        "-d",
        "--name",
        "holds",
        "--",
        "/usr/bin/python3",
        "-c",
        program,
        node,
    ])
    .good();
    wait_until(PATIENCE, "it has it", || lab.last("holds") == node);
    // A file that anybody could have written is not used.
    let refused = lab.cpr(&["checkpoint", "holds"]);
    assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    let listed = lab.cpr(&["devices", "--json"]).good().json();
    assert!(
        listed["problems"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("not trusted"),
        "{listed}"
    );
    lab.add("open-for-all.toml", &toml, 0o644);
    let image = lab.cpr.work.join("holds.cpr");
    let image = image.to_str().unwrap();
    lab.cpr(&["checkpoint", "--stop", "-o", image, "holds"]).good();
    // Root does not do with its plug-ins what another's image says.
    let root = Lab::new("a_device_without_state_root", As::Root).unwrap();
    root.add("fuse.toml", &toml, 0o644);
    let refused = root.cpr(&["restart", "-d", "--name", "theirs", image]);
    assert_eq!(refused.code, DENIED, "{}", refused.stderr);
    assert!(refused.stderr.contains("device plug-in fuse"), "{}", refused.stderr);
    lab.cpr(&["restart", "-d", "--name", "again", image]).good();
    wait_until(PATIENCE, "it goes on", || lab.lines("again") > 3);
    assert_eq!(lab.last("again"), node);
    lab.end("again");
}
