//! Images made while the job runs are of one instant.
//!
//! `CRIU=PATH` names a CRIU to test instead of the one that is found.

mod support;

use std::fs;
use std::path::Path;

use support::victim::{Victim, compile};
use support::{As, Cpr, guest, install_guest, machine, note_skip, skip};

/// A program that writes pairs all the time is saved again and again, and every image is restarted and checked.
fn pairs(test: &str, user: As, pairs: &str, threads: &str) {
    restless(test, user, &["pairs", pairs, threads], &[]);
}

/// A program that changes its memory all the time, and can tell whether it is of one instant, is saved again and again;
/// every image is restarted and checked.
fn restless(test: &str, user: As, command: &[&str], options: &[&str]) {
    let Some(cpr) = Cpr::new(test, user) else {
        return;
    };
    let name = command[0];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/victims/{name}.c"));
    let program = cpr.work.join(name);
    let built = std::process::Command::new("cc")
        .args(["-O1", "-pthread", "-o"])
        .args([&program, &source])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        skip!(test, "there is no C compiler");
    }
    cpr.give(&program);
    let path = format!("./{name}");
    let command: Vec<&str> = std::iter::once(path.as_str())
        .chain(command[1..].iter().copied())
        .collect();
    cpr.run_detached("job", &[], &command);
    support::wait_until(support::PATIENCE, "the program is ready", || {
        cpr.logs("job").starts_with(b"ready")
    });
    let images: Vec<String> = (0..5).map(|n| format!("{}/{n}.cpr", cpr.work.display())).collect();
    for image in &images {
        cpr.checkpoint("job", &[options, &["-o", image]].concat());
    }
    cpr.cpr(["kill", "job", "--signal", "KILL"]).good();
    cpr.wait("job");
    fs::write(cpr.work.join("check"), "").expect("a file can be written");
    for (number, image) in images.iter().enumerate() {
        let name = format!("again{number}");
        cpr.cpr(["restart", "-d", "--name", &name, image]).good();
        assert_eq!(cpr.wait(&name), 0, "{image} is not of one instant");
    }
}

#[test]
fn a_writer_of_one_thread_as_user() {
    pairs("a_writer_of_one_thread_as_user", As::User, "1000000", "1");
}

#[test]
fn three_writers_as_root() {
    pairs("three_writers_as_root", As::Root, "200000", "3");
}

/// A program that checks itself all the time is saved in mid-work, and each image is restarted and goes on checking.
fn goes_on_from_each(test: &str, user: As, name: &str, mode: &str, options: &[&str]) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, name);
    let victim = Victim::start(&cpr, &program, "job", &[mode]);
    let images: Vec<String> = (0..12).map(|n| format!("{}/{n}.cpr", cpr.work.display())).collect();
    for image in &images {
        cpr.checkpoint(victim.job, &[options, &["-o", image]].concat());
    }
    victim.check();
    for (number, image) in images.iter().enumerate() {
        let name = format!("again{number}");
        cpr.cpr(["restart", "-d", "--name", &name, image]).good();
        let code = cpr.wait(&name);
        let said = String::from_utf8_lossy(&cpr.logs(&name)).into_owned();
        assert_eq!(code, 0, "{image}: {said}");
    }
}

/// A job that writes faster than can be copied goes on while its memory is copied from a snapshot, of which it notices
/// nothing.
fn faster_than_copied(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, "flood");
    let victim = Victim::start(&cpr, &program, "job", &[]);
    let images: Vec<String> = (0..3).map(|n| format!("{}/{n}.cpr", cpr.work.display())).collect();
    let modes: Vec<String> = images
        .iter()
        .map(|image| {
            cpr.checkpoint(victim.job, &["-o", image])["mode"]
                .as_str()
                .expect("a mode")
                .to_owned()
        })
        .collect();
    assert!(modes.iter().any(|mode| mode == "snapshot"), "{modes:?}");
    victim.check();
    for (number, image) in images.iter().enumerate() {
        let name = format!("again{number}");
        cpr.cpr(["restart", "-d", "--name", &name, image]).good();
        let code = cpr.wait(&name);
        let said = String::from_utf8_lossy(&cpr.logs(&name)).into_owned();
        assert_eq!(code, 0, "{image}: {said}");
    }
}

#[test]
fn a_writer_faster_than_copying_as_user() {
    faster_than_copied("a_writer_faster_than_copying_as_user", As::User);
}

#[test]
fn a_writer_faster_than_copying_as_root() {
    faster_than_copied("a_writer_faster_than_copying_as_root", As::Root);
}

/// Images of hostile writers are compared, byte for byte, with a copy made by fork(2) in the same stop.
fn compared(test: &str, user: As, name: &str, mode: &str, options: &[&str]) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, name);
    let victim = Victim::start(&cpr, &program, "job", &[mode]);
    let images: Vec<String> = (0..6).map(|n| format!("{}/{n}.cpr", cpr.work.display())).collect();
    for image in &images {
        let made = cpr.checkpoint(victim.job, &[options, &["--compare", "-o", image]].concat());
        assert!(made["compared_pages"].as_u64() > Some(200), "{made}");
    }
    victim.check();
}

/// Long runs of pages, most of which are unlike all others, begin and end anywhere and have pages of zeros and some that
/// are there twice: they are read by several threads, but for these.
const MIXED: &str = "import hashlib, mmap, os, time
PAGE, MIB = 4096, 1 << 20
memory = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[5 * PAGE:40 * MIB - 3 * PAGE] = os.urandom(40 * MIB - 8 * PAGE)
memory[9 * MIB + 7 * PAGE:9 * MIB + 8 * PAGE] = bytes(PAGE)
memory[17 * MIB:17 * MIB + 50 * PAGE] = memory[8 * MIB:8 * MIB + 50 * PAGE]
memory[44 * MIB:60 * MIB] = memory[20 * MIB:36 * MIB]
wanted = hashlib.sha256(memory).digest()
print('ready', flush=True)
while not os.path.exists('check'): time.sleep(0.01)
raise SystemExit(hashlib.sha256(memory).digest() != wanted)
";

/// Whatever way the pages of large memory go into the image: while the job runs or stands still, all of them or what
/// has changed, each once.
#[test]
fn large_memory_is_saved_exactly_as_user() {
    let Some(cpr) = Cpr::new("large_memory_is_saved_exactly_as_user", As::User) else {
        return;
    };
    cpr.run_detached("job", &[], &["/usr/bin/python3", "-c", MIXED]);
    support::wait_until(support::PATIENCE, "the program is ready", || {
        cpr.logs("job").starts_with(b"ready")
    });
    let ways: [&[&str]; 4] = [&[], &["--incremental"], &["--incremental"], &["--stop"]];
    let mut images = Vec::new();
    for (number, options) in ways.into_iter().enumerate() {
        let image = format!("{}/{number}.cpr", cpr.work.display());
        let compare: &[&str] = if options == ["--stop"] { &[] } else { &["--compare"] };
        cpr.checkpoint("job", &[options, compare, &["-o", &image]].concat());
        cpr.cpr(["verify", &image]).good();
        images.push(image);
    }
    for image in [&images[0], &images[1], &images[3]] {
        let bytes = fs::metadata(image).expect("there is an image").len();
        // 40 MiB that are unlike each other, and what Python has.
        assert!((39 << 20..56 << 20).contains(&bytes), "{image}: {bytes} bytes");
    }
    fs::write(cpr.work.join("check"), "").expect("a file can be written");
    for (number, image) in images.iter().enumerate() {
        let name = format!("again{number}");
        cpr.cpr(["restart", "-d", "--name", &name, image]).good();
        assert_eq!(cpr.wait(&name), 0, "{image} is not what the memory was");
    }
}

#[test]
fn images_of_discarded_memory_are_exact_as_user() {
    compared(
        "images_of_discarded_memory_are_exact_as_user",
        As::User,
        "discard",
        "",
        &[],
    );
}

#[test]
fn images_of_many_patches_are_exact_as_user() {
    let test = "images_of_many_patches_are_exact_as_user";
    compared(test, As::User, "patches", "3000", &["--incremental"]);
}

#[test]
fn images_of_a_fast_writer_are_exact_as_root() {
    compared(
        "images_of_a_fast_writer_are_exact_as_root",
        As::Root,
        "flood",
        "",
        &["--incremental"],
    );
}

/// Memory given back while it was copied is empty after the restart.
#[test]
fn memory_given_back_as_user() {
    goes_on_from_each("memory_given_back_as_user", As::User, "discard", "", &[]);
}

/// The same where it was given back since the image before.
#[test]
fn increments_of_memory_given_back_as_user() {
    let test = "increments_of_memory_given_back_as_user";
    goes_on_from_each(test, As::User, "discard", "", &["--incremental"]);
}

/// With some hundred used patches the kernel needs more than one go to list them.
#[test]
fn many_patches_as_user() {
    for count in ["700", "3000"] {
        goes_on_from_each(
            &format!("many_patches_as_user {count}"),
            As::User,
            "patches",
            count,
            &[],
        );
    }
}

#[test]
fn increments_of_many_patches_as_user() {
    let test = "increments_of_many_patches_as_user";
    goes_on_from_each(test, As::User, "patches", "3000", &["--incremental"]);
}

/// Pages are written, given back, unmapped, mapped anew, moved and protected while they are copied.
#[test]
fn a_changing_address_space_as_user() {
    restless("a_changing_address_space_as_user", As::User, &["churn", "4096"], &[]);
}

/// The same in increments: whatever was unmapped or moved since is not taken from the image before.
#[test]
fn increments_of_a_changing_address_space_as_user() {
    let test = "increments_of_a_changing_address_space_as_user";
    restless(test, As::User, &["churn", "4096"], &["--incremental"]);
}

#[test]
fn increments_of_a_changing_address_space_as_root() {
    let test = "increments_of_a_changing_address_space_as_root";
    restless(test, As::Root, &["churn", "1024"], &["--incremental"]);
}

#[test]
fn increments_of_three_writers_as_user() {
    let test = "increments_of_three_writers_as_user";
    restless(test, As::User, &["pairs", "200000", "3"], &["--incremental"]);
}

/// No copy is made of a job that adopts orphans; that nothing was compared is no success.
#[test]
fn what_cannot_be_compared_is_refused() {
    const UNSUPPORTED: i32 = 69;
    const ADOPTS: &str = "import ctypes,time\nassert ctypes.CDLL(None).prctl(36,1,0,0,0)==0\nprint('ready',flush=True)\n\
                          time.sleep(1000)";
    let Some(cpr) = Cpr::new("what_cannot_be_compared_is_refused", As::User) else {
        return;
    };
    cpr.run_detached("adopts", &[], &["/usr/bin/python3", "-c", ADOPTS]);
    support::wait_until(support::PATIENCE, "it is ready", || {
        cpr.logs("adopts").starts_with(b"ready")
    });
    let image = cpr.work.join("image.cpr");
    let path = image.display().to_string();
    let refused = cpr.cpr(["checkpoint", "--compare", "-o", &path, "adopts"]);
    assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    assert!(refused.stderr.contains("adopts orphans"), "{}", refused.stderr);
    assert!(!image.exists() && cpr.is_running("adopts"));
    cpr.checkpoint("adopts", &["-o", &path]);
}

/// Saves a job of CRIU's while it runs, and has it go on from that, twice; the image itself is left on the disk.
const CRIU_AT_WORK: &str = "export PATH=/bin GRIDCPR_STATE_DIR=/state
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
ip link set lo up
for module in MODULES; do insmod /$module.ko; done
cd /work
cpr run -d --engine criu --name sim -- /bin/busy_memory /work/go >/dev/null
until cpr logs sim | grep -q READY; do usleep 100000; done
for option in '' --stop; do
    said=$(cpr checkpoint -q --json --live $option sim 2>&1)
    echo saved $said
done
# Without anything of the directory where the engine worked.
cp /state/jobs/sim/images/000002.cpr /work
cpr rm sim
cpr restart -d --name again 000002.cpr >/dev/null
cpr checkpoint -q --live --stop again 2>&1
cpr restart -d --lazy again >/dev/null
touch /work/go
cpr wait again
echo ended $? $(cpr logs again | grep -v READY)
";

/// Where the kernel tracks writes for CRIU, as that of the distribution does, `--live` copies memory with it in rounds:
/// what is left for the stop is what was written last.
#[test]
fn criu_copies_memory_while_a_job_runs() {
    let test = "criu_copies_memory_while_a_job_runs";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let places = support::path();
    let Some(criu) = std::env::split_paths(&places)
        .map(|place| place.join("criu"))
        .find(|path| path.is_file())
    else {
        skip!(test, "there is no CRIU");
    };
    if std::process::Command::new(guest::MACHINE[0])
        .arg("--version")
        .output()
        .is_err()
    {
        skip!(test, "there is no {}", guest::MACHINE[0]);
    }
    if !install_guest(&cpr, test) {
        return;
    }
    let root = cpr.work.join("root");
    machine::lay_out(&cpr, &root);
    machine::put_program(&root, &criu, Path::new("/bin/criu"));
    machine::put_program(&root, &compile(&cpr, "busy_memory"), Path::new("/bin/busy_memory"));
    let modules = guest::OF_CRIU
        .into_iter()
        .filter_map(|name| Some((name, guest::module(name)?)));
    let mut names = Vec::new();
    for (name, module) in modules {
        fs::copy(&module, root.join(format!("{name}.ko"))).expect("a module can be copied");
        names.push(name);
    }
    fs::write(root.join("boot"), CRIU_AT_WORK.replace("MODULES", &names.join(" "))).expect("a file can be written");
    let disk = match machine::make_disk(&cpr, &root) {
        Ok(disk) => disk,
        Err(reason) => {
            note_skip(test, &reason);
            return;
        }
    };
    let said = machine::boot(&cpr, &disk);
    let saved: Vec<serde_json::Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("saved ")?).ok())
        .collect();
    assert_eq!(saved.len(), 2, "{said}");
    for report in saved {
        assert_eq!(report["mode"], "live", "{said}");
        let bytes = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("no {key}: {said}"));
        // Two processes have 32 MiB each, of which they write a hundredth.
        assert!(bytes("data_bytes") > 64 << 20, "{said}");
        assert!(bytes("stopped_bytes") < 16 << 20, "{said}");
    }
    assert!(said.lines().any(|line| line == "ended 0 OK"), "{said}");
}
