//! Jobs that go on where something is not as it was: on another host, on another processor; and jobs whose parts
//! are held together by libraries, pipes and message passing.

mod support;

use std::fs;
use std::path::Path;

use gridcpr::image::model::{Manifest, MappingKind, XstatePart};
use support::image::{edited, edited_with_pages};
use support::victim::{Victim, compile};
use support::{As, Cpr, PATIENCE, skip, wait_until};

/// `Incompatible` of docs/exit-codes.md.
const INCOMPATIBLE: i32 = 78;
const PYTHON: &str = "/usr/bin/python3";
const JOB: &str = "job";

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn put(cpr: &Cpr, name: &str, content: &str) {
    let path = cpr.work.join(name);
    fs::write(&path, content).expect("the test's directory can be written");
    cpr.give(&path);
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Numbers from 1, one a line.
fn numbers(to: usize) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

/// Copies numbered lines from a file to another, and waits halfway.
const COPY: &str = "import os, time
with open('in') as source, open('out', 'w') as target:
    for line in source:
        target.write(line)
        if line == '5000\\n':
            target.flush()
            while not os.path.exists('go'): time.sleep(0.01)
";

/// LBNL-2.4.7, LBNL-3.8.1: namespaces of all kinds with a file system of their own are the other host. Of the first
/// one it has the image and a copy of the working directory, under the same name and with other inode numbers.
#[test]
fn a_job_goes_on_on_another_host() {
    let test = "a_job_goes_on_on_another_host";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    put(&cpr, "in", &numbers(10_000));
    cpr.run_detached(JOB, &[], &[PYTHON, "-c", COPY]);
    wait_until(PATIENCE, "half of it is copied", || {
        read(&cpr.work.join("out")).ends_with("\n5000\n")
    });
    // Neither is below what the other host does not have.
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let image = place.path().join("image.cpr");
    cpr.checkpoint(JOB, &["--stop", "-o", text(&image)]);
    cpr.cpr(["rm", JOB]).good();
    let script = r#"set -e
place=$1 work=$2 cpr=$3 state=$4
ip link set lo up
hostname elsewhere
cp -r "$work" "$place/files"
before=$(stat -c %i "$work/in")
mount -t tmpfs none "$work"
mount -t tmpfs none "$state"
cp -r "$place/files/." "$work"
cd "$work"
[ "$(stat -c %d:%i in)" != "$(stat -c %d "$place"):$before" ]
: >go
"$cpr" restart --name there "$place/image.cpr"
cp out "$place/out"
"#;
    cpr.program(&[
        "unshare",
        "--mount",
        "--pid",
        "--net",
        "--uts",
        "--ipc",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        script,
        "sh",
        text(place.path()),
        text(&cpr.work),
        text(cpr.binary()),
        text(&cpr.state_dir),
    ])
    .good();
    assert_eq!(read(&place.path().join("out")), numbers(10_000));
    assert_eq!(
        read(&cpr.work.join("out")),
        numbers(5_000),
        "the first host has what it had"
    );
}

/// Waits by absolute times of the monotonic clock, as Python's sleep does, and tells what the clocks that count from
/// the start of the machine show.
const CLOCKS: &str = "import os, time
begin = time.monotonic()
open('started', 'w').close()
while not os.path.exists('go'): time.sleep(0.01)
with open('clocks', 'w') as out:
    print(time.monotonic() - begin, time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), file=out)
while not os.path.exists('end'): time.sleep(0.01)
";

fn clocks(cpr: &Cpr) -> [f64; 3] {
    put(cpr, "go", "");
    wait_until(PATIENCE, "the program goes on", || {
        read(&cpr.work.join("clocks")).ends_with('\n')
    });
    let line = read(&cpr.work.join("clocks"));
    let fields = line.split_whitespace().map(|field| field.parse().expect("a number"));
    fields.collect::<Vec<f64>>().try_into().expect("three numbers")
}

/// LBNL-3.9.1.M14: the machine that the job began on had been up for a million seconds longer than the one it goes on
/// on, as after a reboot. A program that sleeps by the old clock would sleep on for eleven days.
#[test]
fn clocks_go_on_on_a_machine_that_has_just_started() {
    const LONGER: f64 = 1e6;
    let test = "clocks_go_on_on_a_machine_that_has_just_started";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let (image, second) = (cpr.work.join("image.cpr"), cpr.work.join("second.cpr"));
    let script = r#"set -e
"$1" run -d --name job -- "$3" -c "$4"
until [ -e started ]; do sleep 0.05; done
"$1" checkpoint --stop -o "$2" job
"#;
    let namespace = [
        "unshare",
        "--time",
        "--fork",
        "--monotonic",
        "1000000",
        "--boottime",
        "1000000",
    ];
    let arguments = [
        "sh",
        "-c",
        script,
        "sh",
        text(cpr.binary()),
        text(&image),
        PYTHON,
        CLOCKS,
    ];
    cpr.program(&[&namespace[..], &arguments].concat()).good();
    cpr.cpr(["restart", "-d", "--name", "first", text(&image)]).good();
    // It is checkpointed in a time namespace now.
    cpr.checkpoint("first", &["--stop", "-o", text(&second)]);
    cpr.cpr(["restart", "-d", "--name", "again", text(&second)]).good();
    let [passed, monotonic, boottime] = clocks(&cpr);
    assert!((0.0..LONGER / 2.0).contains(&passed), "{passed} s have passed");
    assert!(monotonic > LONGER && boottime > LONGER, "{monotonic} {boottime}");
    // Nor do clocks stand still when it is saved and goes on.
    cpr.checkpoint("again", &[]);
    put(&cpr, "end", "");
    assert_eq!(cpr.wait("again"), 0);
}

/// A machine that was not started anew needs no other clocks: a job's agree with those of programs beside it.
#[test]
fn clocks_of_the_same_machine_are_its_own() {
    let test = "clocks_of_the_same_machine_are_its_own";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    cpr.run_detached(JOB, &[], &["sleep", "1000"]);
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    let jobs = cpr.cpr(["ps", "--json"]).good().json();
    let pid = jobs["jobs"][0]["pid"].as_i64().expect("the job has a PID");
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).expect("the process lives");
    assert_eq!(namespace(&pid.to_string()), namespace("self"));
}

/// LBNL-3.9.1.M14: a clock that is not the machine's, for a user who has no rights over the machine's clocks.
#[test]
fn clocks_of_a_users_job_go_on() {
    let Some(cpr) = Cpr::new("clocks_of_a_users_job_go_on", As::User) else {
        return;
    };
    cpr.run_detached(JOB, &[], &[PYTHON, "-c", CLOCKS]);
    wait_until(PATIENCE, "it runs", || cpr.work.join("started").exists());
    let image = cpr.work.join("image.cpr");
    cpr.checkpoint(JOB, &["--stop", "-o", text(&image)]);
    let image = edited(&image, None, |manifest| {
        manifest.checkpoint.monotonic_ns += 1_000_000_000_000_000;
        manifest.checkpoint.boottime_ns += 2_000_000_000_000_000;
    });
    cpr.give(&image);
    cpr.cpr(["restart", "-d", "--name", "again", text(&image)]).good();
    let [passed, monotonic, boottime] = clocks(&cpr);
    assert!(passed >= 1e6 && monotonic >= 1e6, "{passed} {monotonic}");
    assert!(boottime >= 2e6, "{boottime}");
    put(&cpr, "end", "");
    assert_eq!(cpr.wait("again"), 0);
}

/// LBNL-3.9.1.M23: an image of a machine whose processor can do more, or whose kernel has another vdso.
#[test]
fn what_another_machine_lacks_is_named() {
    let test = "what_another_machine_lacks_is_named";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    cpr.run_detached(JOB, &[], &["sleep", "1000"]);
    let image = cpr.work.join("image.cpr");
    cpr.checkpoint(JOB, &["--stop", "-o", text(&image)]);
    let here = read(Path::new("/proc/cpuinfo"));
    let known = ["rtm", "amx_tile", "avx512f", "sha_ni", "rdseed", "avx2"];
    let lacking = known.iter().find(|flag| !here.split_whitespace().any(|f| f == **flag));
    let refused = |edit: &dyn Fn(&mut Manifest), named: &str| {
        let image = edited(&image, None, edit);
        cpr.give(&image);
        for command in [&["check"][..], &["restart", "-d", "--name", "again"]] {
            let ended = cpr.cpr(command.iter().copied().chain([text(&image)]));
            assert_eq!(ended.code, INCOMPATIBLE, "{command:?}: {}", ended.stderr);
            let said = ended.text() + &ended.stderr;
            assert!(said.contains(named), "{named}: {said}");
        }
        assert_eq!(cpr.cpr(["ps", "--json"]).good().json()["jobs"], serde_json::json!([]));
    };
    match lacking {
        Some(flag) => refused(&|manifest| manifest.checkpoint.cpu_flags.push((*flag).to_owned()), flag),
        None => support::note_skip(test, "this processor has every feature"),
    }
    // Of an image that does not have the code of its vdso.
    refused(
        &|manifest| {
            manifest.checkpoint.vdso_hash.0.iter_mut().for_each(|byte| *byte ^= 1);
            let mappings = manifest.address_spaces.iter_mut().flat_map(|space| &mut space.mappings);
            let vdso = mappings.filter(|mapping| mapping.kind == MappingKind::Vdso);
            vdso.for_each(|mapping| mapping.extents.clear());
        },
        "vdso",
    );
    // The image itself is one of this machine.
    cpr.cpr(["restart", "-d", "--name", "again", text(&image)]).good();
    assert!(cpr.is_running("again"));
}

/// Asks for the time again and again, as a thread and as a child do, too.
const CLOCK_READERS: &str = "import os, threading, time
def read():
    last = (0, 0)
    while not os.path.exists('end'):
        now = (time.time(), time.monotonic())
        assert now >= last, (now, last)
        last = now
        time.sleep(0.02)
child = os.fork()
thread = threading.Thread(target=read)
thread.start()
if child == 0:
    read(); thread.join(); os._exit(0)
open('begun', 'w').close()
read(); thread.join()
assert os.waitpid(child, 0)[1] == 0
assert abs(time.time() - os.stat('end').st_mtime) < 60
";

/// Where the functions of an ELF image with a table of dynamic symbols are, and how long.
fn functions(elf: &[u8]) -> Vec<(usize, usize)> {
    let number =
        |at: usize, length: usize| (0..length).fold(0, |all, byte| all | usize::from(elf[at + byte]) << (8 * byte));
    let sections = (0..number(0x3c, 2)).map(|index| number(0x28, 8) + 64 * index);
    let symbols = sections
        .into_iter()
        .find(|at| number(at + 4, 4) == 11)
        .expect("it has dynamic symbols");
    let (offset, length) = (number(symbols + 0x18, 8), number(symbols + 0x20, 8));
    let all = (offset..offset + length)
        .step_by(24)
        .filter(|at| number(at + 4, 1) & 15 == 2);
    all.map(|at| (number(at + 8, 8), number(at + 16, 8))).collect()
}

/// LBNL-2.4.11, LBNL-3.9.1.M3: the code of the image's vdso is such that any function of it that is run ends the
/// program. So it is another kernel's, of which nothing but the names and places of functions is the same.
#[test]
fn a_job_goes_on_under_a_kernel_with_another_vdso() {
    let test = "a_job_goes_on_under_a_kernel_with_another_vdso";
    for user in [As::User, As::Root] {
        let Some(cpr) = Cpr::new(test, user) else { continue };
        cpr.run_detached(JOB, &[], &[PYTHON, "-c", CLOCK_READERS]);
        wait_until(PATIENCE, "it reads clocks", || cpr.work.join("begun").exists());
        let image = cpr.work.join("image.cpr");
        cpr.checkpoint(JOB, &["--stop", "-o", text(&image)]);
        let good = gridcpr::image::Image::open(&image).expect("the image is good");
        let mut spaces = good.manifest().address_spaces.iter().flat_map(|space| &space.mappings);
        let vdso = spaces
            .find(|mapping| mapping.kind == MappingKind::Vdso)
            .expect("there is a vdso")
            .clone();
        let mut code = vec![0; (vdso.end - vdso.start) as usize];
        for extent in &vdso.extents {
            let from = (extent.start - vdso.start) as usize;
            let part = &mut code[from..from + extent.length as usize];
            good.read_data(extent.offset, part).expect("the image is good");
        }
        let found = functions(&code);
        assert!(found.len() > 3, "{found:?}");
        for (at, length) in found {
            // ud2.
            code[at..at + length].fill(0x0b);
            code[at..at + length]
                .iter_mut()
                .step_by(2)
                .for_each(|byte| *byte = 0x0f);
        }
        let other = edited_with_pages(
            &image,
            None,
            |manifest| manifest.checkpoint.vdso_hash.0 = gridcpr::image::hash(&code).to_vec(),
            |position, page| {
                for extent in &vdso.extents {
                    if (extent.offset..extent.offset + extent.length).contains(&position) {
                        let from = (extent.start - vdso.start + position - extent.offset) as usize;
                        page.copy_from_slice(&code[from..from + page.len()]);
                    }
                }
            },
        );
        cpr.give(&other);
        cpr.cpr(["check", text(&other)]).good();
        cpr.cpr(["restart", "-d", "--name", "again", text(&other)]).good();
        // What the program takes for the vdso is its own by now, and saved like anything of its own.
        cpr.checkpoint("again", &[]);
        cpr.checkpoint("again", &["--stop"]);
        cpr.restart("again");
        put(&cpr, "end", "");
        assert_eq!(cpr.wait("again"), 0, "{}", String::from_utf8_lossy(&cpr.logs("again")));
    }
}

/// Writes numbers, and waits halfway.
const WRITER: &str = "import os, time
for n in range(1, 200001):
    print(n)
    if n == 100000:
        open('half', 'w').close()
        while not os.path.exists('go'): time.sleep(0.01)
";
/// Says each line twice.
const BOTH: &str = "import sys
for line in sys.stdin:
    sys.stdout.write(line)
    sys.stderr.write(line)
";

fn pipes(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    put(&cpr, "writer.py", WRITER);
    put(&cpr, "both.py", BOTH);
    let script = format!(
        "mkfifo named; {PYTHON} writer.py >named & cat <named | tail -n +1 | {PYTHON} both.py >out 2>err; wait $!"
    );
    cpr.run_detached(JOB, &[], &["sh", "-c", &script]);
    wait_until(PATIENCE, "half of it is written", || cpr.work.join("half").exists());
    cpr.checkpoint(JOB, &["--stop"]);
    assert!(read(&cpr.work.join("out")).len() < numbers(200_000).len());
    cpr.restart(JOB);
    put(&cpr, "go", "");
    assert_eq!(cpr.wait(JOB), 0);
    for name in ["out", "err"] {
        assert!(
            read(&cpr.work.join(name)) == numbers(200_000),
            "{name} is not what it should be"
        );
    }
}

// A named pipe and pipes between members of a session, whose streams are pipes and files:
// LBNL-3.9.6.1.3, LBNL-3.9.6.2.3, LBNL-3.9.8.3.1, LBNL-3.9.8.3.2, LBNL-3.9.8.3.3
#[test]
fn pipes_connect_as_they_did_as_root() {
    pipes("pipes_connect_as_they_did_as_root", As::Root);
}

#[test]
fn pipes_connect_as_they_did_as_user() {
    pipes("pipes_connect_as_they_did_as_user", As::User);
}

/// A program that counts with ten libraries and three plug-ins, each of which has a counter.
fn libraries(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let compile = |arguments: &[&str]| {
        let mut line = vec!["cc", "-O1", "-Wall", "-Werror"];
        line.extend(arguments);
        cpr.program(&line).good();
    };
    let declared: String = (0..10).map(|n| format!("int next{n}(void);\n")).collect();
    let calls: String = (0..10).map(|n| format!("    sum += next{n}();\n")).collect();
    for n in 0..13 {
        let source = format!("library{n}.c");
        put(
            &cpr,
            &source,
            &format!("static int count = {n}; int next{n}(void) {{ return ++count; }}\n"),
        );
        compile(&["-fPIC", "-shared", "-o", &format!("lib{n}.so"), &source]);
    }
    let program = format!(
        r#"#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
{declared}
int main(void) {{
    int (*plugin[3])(void);
    for (int i = 0; i < 3; i++) {{
        char name[32], symbol[32];
        snprintf(name, sizeof name, "./lib%d.so", 10 + i);
        snprintf(symbol, sizeof symbol, "next%d", 10 + i);
        void *library = dlopen(name, RTLD_NOW);
        plugin[i] = library ? (int (*)(void))dlsym(library, symbol) : 0;
        if (!plugin[i]) return 1;
    }}
    for (int round = 0; round < 2; round++) {{
        int sum = 0;
{calls}        for (int i = 0; i < 3; i++) sum += plugin[i]();
        printf("%d\n", sum);
        fflush(stdout);
        while (round == 0 && access("go", F_OK) != 0) usleep(10000);
    }}
    return dlopen("./lib12.so", RTLD_NOW | RTLD_NOLOAD) ? 0 : 2;
}}
"#
    );
    put(&cpr, "program.c", &program);
    let names: Vec<String> = (0..10).map(|n| format!("./lib{n}.so")).collect();
    let mut line = vec!["-Wl,--no-as-needed", "-Wl,-rpath,.", "-o", "program", "program.c"];
    line.extend(names.iter().map(String::as_str));
    compile(&line);
    cpr.run_detached(JOB, &[], &["./program"]);
    // 0 to 12, each and one more.
    wait_until(PATIENCE, "all libraries were called", || cpr.logs(JOB) == b"91\n");
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    put(&cpr, "go", "");
    assert_eq!(cpr.wait(JOB), 0);
    assert_eq!(cpr.logs(JOB), b"91\n104\n");
}

// LBNL-3.9.10.5.1, LBNL-3.9.10.5.2, LBNL-3.9.10.1.1
#[test]
fn libraries_and_plug_ins_go_on_as_root() {
    libraries("libraries_and_plug_ins_go_on_as_root", As::Root);
}

#[test]
fn libraries_and_plug_ins_go_on_as_user() {
    libraries("libraries_and_plug_ins_go_on_as_user", As::User);
}

/// Between ranks on one machine, the ways of Open MPI.
const SHARED_MEMORY: &[&str] = &["--mca", "btl", "self,vader"];
const LOOPBACK: &[&str] = &["--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo"];

/// Four ranks that pass messages around.
fn mpi(test: &str, user: As, transport: &[&str]) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    for program in ["mpirun", "mpicc"] {
        if cpr.program(&["sh", "-c", r#"command -v "$1""#, "sh", program]).code != 0 {
            skip!(test, "{program} not found");
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workloads/mpi_ring/ring.c");
    cpr.program(&["mpicc", "-O1", "-o", "ring", text(&source)]).good();
    // Not in /tmp, where other tests have and remove theirs.
    let session = ["--mca", "orte_tmpdir_base", text(&cpr.work)];
    let mut command = vec!["mpirun", "--oversubscribe", "-np", "4"];
    command.extend(session);
    command.extend(transport);
    if user == As::Root {
        command.push("--allow-run-as-root");
    }
    command.push("./ring");
    put(&cpr, "go", "");
    let plain = cpr.program(&command).good().text();
    fs::remove_file(cpr.work.join("go")).expect("the file is there");
    fs::remove_file(cpr.work.join("half")).expect("the file is there");
    cpr.run_detached(JOB, &[], &command);
    wait_until(PATIENCE, "half of it is done", || cpr.work.join("half").exists());
    let report = cpr.checkpoint(JOB, &["--stop"]);
    assert_eq!(report["processes"], 5, "the ranks and their starter: {report}");
    cpr.restart(JOB);
    cpr.checkpoint(JOB, &[]);
    put(&cpr, "go", "");
    assert_eq!(cpr.wait(JOB), 0);
    let sorted = |said: &str| {
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let said = String::from_utf8_lossy(&cpr.logs(JOB)).into_owned();
    assert_eq!(sorted(&said), sorted(&plain));
    assert_eq!(said.lines().count(), 4, "{said}");
}

// LBNL-3.3.4
#[test]
fn ranks_of_open_mpi_over_shared_memory_as_user() {
    mpi("ranks_of_open_mpi_over_shared_memory_as_user", As::User, SHARED_MEMORY);
}

#[test]
fn ranks_of_open_mpi_over_shared_memory_as_root() {
    mpi("ranks_of_open_mpi_over_shared_memory_as_root", As::Root, SHARED_MEMORY);
}

// LBNL-2.2.2.2
#[test]
fn ranks_of_open_mpi_over_tcp_as_root() {
    mpi("ranks_of_open_mpi_over_tcp_as_root", As::Root, LOOPBACK);
}

/// Where another processor has its vector registers: elsewhere than this one.
const FURTHER: u32 = 4096;

/// Moves what is above the legacy region of the extended registers of all threads to where another processor has it.
fn move_registers(manifest: &mut Manifest) {
    /// Legacy region and header.
    const FIRST: usize = 576;
    for part in &mut manifest.checkpoint.xstate_parts {
        part.offset += FURTHER;
    }
    for thread in manifest.processes.iter_mut().flat_map(|process| &mut process.threads) {
        let area = &mut thread.cpu.extended.0;
        let components = area.split_off(FIRST);
        area.resize(FIRST + FURTHER as usize, 0xee);
        area.extend(components);
    }
}

/// Gives a thread rights of protection keys, where another processor has them.
fn give_keys(manifest: &mut Manifest, rights: u32) {
    const KEYS: u32 = 9;
    let offset = 3 * FURTHER;
    let parts = &mut manifest.checkpoint.xstate_parts;
    parts.retain(|part| part.component != KEYS);
    parts.push(XstatePart {
        component: KEYS,
        offset,
        length: 8,
    });
    let thread = &mut manifest.processes[0].threads[0];
    let area = &mut thread.cpu.extended.0;
    area.resize(offset as usize, 0);
    area.extend([rights.to_le_bytes(), [0; 4]].concat());
    area[513] |= 1 << (KEYS - 8);
}

/// Vector and mask registers are what they were in a job that another processor was left by, which has them elsewhere
/// in its memory; what this one does not have is refused unless there is nothing in it.
// LBNL-3.9.1.M23
#[test]
fn registers_go_where_this_processor_has_them() {
    let test = "registers_go_where_this_processor_has_them";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    let program = compile(&cpr, "vectors");
    let victim = Victim::start(&cpr, &program, JOB, &[]);
    let image = cpr.work.join("image.cpr");
    cpr.checkpoint(JOB, &["--stop", "-o", text(&image)]);
    let other = edited(&image, None, move_registers);
    cpr.give(&other);
    cpr.cpr(["restart", "-d", "--name", "moved", text(&other)]).good();
    put(&cpr, &format!("go-{}", victim.job), "");
    assert_eq!(cpr.wait("moved"), 0, "{}", String::from_utf8_lossy(&cpr.logs("moved")));
    if read(Path::new("/proc/cpuinfo")).contains(" ospke") {
        support::note_skip(test, "this processor has protection keys");
        return;
    }
    // As Linux gives them to every program, and as only one that uses them has them.
    for (rights, code) in [(0x5555_5554, 0), (0x5555_5550, INCOMPATIBLE)] {
        let other = edited(&image, None, |manifest| give_keys(manifest, rights));
        cpr.give(&other);
        let restarted = cpr.cpr(["restart", "-d", "--name", "keys", text(&other)]);
        assert_eq!(restarted.code, code, "{}", restarted.stderr);
        match code {
            0 => assert_eq!(cpr.wait("keys"), 0, "{}", String::from_utf8_lossy(&cpr.logs("keys"))),
            _ => assert!(
                restarted.stderr.contains("memory protection keys"),
                "{}",
                restarted.stderr
            ),
        }
        cpr.cpr(["rm", "keys"]);
    }
}
