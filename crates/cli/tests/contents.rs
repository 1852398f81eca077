//! What is in an image, and what is not: compared with what the process itself, or /proc, said of it.

mod support;

use std::fs;

use serde_json::Value;
use support::{As, Cpr, PATIENCE, wait_until};

const PYTHON: &str = "/usr/bin/python3";
const MIB: u64 = 1 << 20;

/// The listing of the newest image of a job.
fn listing(cpr: &Cpr, job: &str) -> Value {
    cpr.cpr(["inspect", "--json", job]).good().json()["manifest"].clone()
}

/// Eight children share a mapping and a heap with their parent, which has as much memory again that it never touched,
/// and a file mapped that it only reads.
const FAMILY: &str = "import mmap, os, sys, time
size = 32 << 20
shared = mmap.mmap(-1, size)
shared.write(os.urandom(size))
heap = os.urandom(size)
untouched = mmap.mmap(-1, 1 << 30)
source = open('read-only', 'rb')
mapped = mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ)
total = sum(mapped[i] for i in range(0, size, 4096))
for child in range(8):
    if os.fork() == 0: break
else:
    print('READY', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
";

/// Long and short runs of equal pages, among others; where they begin and end is of no pattern.
const EQUAL: &str = "import hashlib, mmap, os, time
pages = 40000
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = 0
for length, content in [(17000, b'a'), (3, None), (200, b'b'), (1, None), (300, b'a'), (70, None), (1, b'b'), (20000, b'c')]:
    for page in range(at, at + length):
        memory[page * 4096:page * 4096 + 4096] = os.urandom(4096) if content is None else content * 4096
    at += length
had = hashlib.sha256(memory).hexdigest()
print('READY', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
print('SAME' if hashlib.sha256(memory).hexdigest() == had else 'OTHER', flush=True)
";

#[test]
fn equal_pages_are_stored_once_and_come_back_everywhere() {
    let Some(cpr) = Cpr::new("equal_pages_are_stored_once", As::User) else {
        return;
    };
    cpr.run_detached("sim", &[], &[PYTHON, "-c", EQUAL]);
    wait_until(PATIENCE, "the pages are there", || {
        cpr.logs("sim").starts_with(b"READY")
    });
    let report = cpr.checkpoint("sim", &["--stop"]);
    let bytes = report["bytes"].as_u64().expect("the report has a length");
    assert!(bytes < 32 * MIB, "the image has {bytes} bytes of 156 MiB");
    cpr.restart("sim");
    fs::write(cpr.work.join("go"), "").expect("a file can be made");
    assert_eq!(cpr.wait("sim"), 0);
    assert_eq!(String::from_utf8_lossy(&cpr.logs("sim")), "READY\nSAME\n");
}

// LBNL-3.1.3
#[test]
fn what_is_shared_is_stored_once_and_what_was_not_touched_is_not() {
    let Some(cpr) = Cpr::new("what_is_shared_is_stored_once", As::User) else {
        return;
    };
    let file = fs::File::create(cpr.work.join("read-only")).expect("the test's directory can be written");
    file.set_len(32 * MIB).expect("the test's directory can be written");
    let mut random = fs::File::open("/dev/urandom").expect("there is a random device");
    std::io::copy(&mut std::io::Read::take(&mut random, 32 * MIB), &mut &file).expect("a file can be filled");
    cpr.run_detached("family", &[], &[PYTHON, "-c", FAMILY]);
    wait_until(PATIENCE, "the family is there", || cpr.logs("family") == b"READY\n");
    let report = cpr.checkpoint("family", &["--stop"]);
    assert_eq!(report["processes"], 9);
    let bytes = report["bytes"].as_u64().expect("a size");
    // Both once, and what nine interpreters have of their own.
    assert!((64 * MIB..64 * MIB + 9 * 8 * MIB).contains(&bytes), "{bytes}");
    cpr.restart("family");
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("family"), 0);
}

/// Uses processor time, memory and the disk, and says what getrusage(2) says of it, again and again.
const USES: &str = "import os, resource, time
held = os.open('written', os.O_RDWR | os.O_CREAT | os.O_DSYNC)
while os.times().user < 0.3: pass
end = os.times().system + 0.2
while os.times().system < end: open('/dev/zero', 'rb').read(1 << 20)
os.write(held, b'x' * (1 << 20))
memory = bytearray(8 << 20)
os.fsync(held)
print('READY', flush=True)
while True:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    now = (usage.ru_utime, usage.ru_stime, usage.ru_minflt, usage.ru_majflt, usage.ru_inblock, usage.ru_oublock,
           usage.ru_maxrss)
    open('usage.new', 'w').write(' '.join(map(str, now)))
    os.rename('usage.new', 'usage')
    time.sleep(0.02)
";

/// What the process said right before the checkpoint is not more than what the image says, and what it said right after
/// not less.
// LBNL-2.2.4B.13
#[test]
fn accounting_is_as_the_process_had_it() {
    let Some(cpr) = Cpr::new("accounting_is_as_the_process_had_it", As::User) else {
        return;
    };
    cpr.run_detached("uses", &[], &[PYTHON, "-c", USES]);
    wait_until(PATIENCE, "it has used all of that", || cpr.logs("uses") == b"READY\n");
    let usage = || -> Vec<f64> {
        let text = fs::read_to_string(cpr.work.join("usage")).unwrap_or_default();
        text.split(' ').filter_map(|field| field.parse().ok()).collect()
    };
    let fresh = || {
        let old = fs::metadata(cpr.work.join("usage")).and_then(|m| m.modified()).ok();
        wait_until(PATIENCE, "it says what it used", || {
            let now = fs::metadata(cpr.work.join("usage")).and_then(|m| m.modified()).ok();
            now.is_some() && now != old && usage().len() == 7
        });
        usage()
    };
    let before = fresh();
    cpr.checkpoint("uses", &[]);
    fresh();
    let after = fresh();
    let accounting = listing(&cpr, "uses")["processes"][0]["accounting"].clone();
    let field = |name: &str| {
        accounting[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {accounting}")) as f64
    };
    let found = [
        field("user_ns") / 1e9,
        field("system_ns") / 1e9,
        field("minor_faults"),
        field("major_faults"),
        field("read_bytes") / 512.0,
        field("write_bytes") / 512.0,
        field("peak_rss_kib"),
    ];
    // Times in /proc are in ticks.
    let slack = [0.02, 0.02, 0.0, 0.0, 0.0, 0.0, 1024.0];
    for (index, value) in found.iter().enumerate() {
        assert!(
            *value >= before[index] - slack[index] && *value <= after[index] + slack[index],
            "field {index}: {value} is not between {before:?} and {after:?} ({accounting})"
        );
    }
    assert!(found[0] >= 0.2 && found[1] >= 0.1 && found[5] >= 2048.0, "{accounting}");
    cpr.cpr(["rm", "--force", "uses"]).good();
}
