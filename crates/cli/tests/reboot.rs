//! A machine that is started anew, with the kernel of the distribution: what was saved before goes on. What was saved
//! there goes on here, under another kernel and on another processor, and the other way round.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::image::edited;
use support::victim::compile;
use support::{As, Cpr, PATIENCE, install_guest, machine, note_skip, wait_until};

const QEMU: &str = "qemu-system-x86_64";
/// What is saved: processes, threads and their registers, timers with numbers, files, pipes and sockets.
///
/// Not `signals`, which ignores SIGTRAP: on that kernel (6.1) it ends after a checkpoint that lets it go on, a defect that
/// docs/coverage.md names. On this machine's kernel it goes on.
const VICTIMS: [&str; 5] = ["tree", "vectors", "timers", "files", "sockets"];
/// What is refused there, and how: its kernel gives nobody the descriptors of a process whose main thread has ended, nor
/// files that only io_uring has.
const REFUSED: [(&str, &str); 2] = [
    ("leaderless", "main thread has ended"),
    ("io_uring", "but for io_uring"),
];

/// Saves everything when the machine is started first, and has it go on when it is started again.
const BOOT: &str = "export PATH=/bin GRIDCPR_STATE_DIR=/state
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
ip link set lo up
echo started $(cat /proc/sys/kernel/random/boot_id)
if [ ! -e /saved ]; then
    for victim in VICTIMS; do
        mkdir -p /work/$victim
        cd /work/$victim
        cpr run -d --name $victim -- /bin/$victim /work/$victim/go >/dev/null || exit
        cd /
    done
    for victim in VICTIMS; do
        until cpr logs $victim | grep -q READY; do usleep 100000; done
        cpr checkpoint $victim >/dev/null 2>&1 || echo $victim: not saved
        cpr checkpoint --stop $victim >/work/$victim/said 2>&1 && echo $victim: saved || cat /work/$victim/said
    done
    for victim in REFUSED; do
        cpr run -d --name $victim -- /bin/$victim /work/go-$victim >/dev/null
        until cpr logs $victim | grep -q READY; do usleep 100000; done
        cpr checkpoint $victim 2>&1 | sed -n \"s/^cpr: error/$victim/p\"
        cpr kill -s KILL $victim >/dev/null
    done
    mkdir -p HERE
    cd HERE
    for name in TRAVELLERS; do
        cpr run -d --name there-$name -- HERE/$name HERE/go-there-$name >/dev/null
        until cpr logs there-$name | grep -q READY; do usleep 100000; done
        cpr checkpoint --stop -o /out/$name.cpr there-$name >/dev/null 2>&1 || echo there-$name: not saved
    done
    touch /saved
    sync
    exit
fi
for victim in VICTIMS; do
    cpr restart -d $victim >/dev/null || continue
    touch /work/$victim/go
    cpr wait $victim
    echo $victim: $(cpr logs $victim | grep -v READY)
done
cd HERE
for name in TRAVELLERS; do
    cpr restart -d --name whole-$name /in/$name.whole 2>&1 >/dev/null | sed -n \"s/^cpr: error/whole-$name/p\"
    cpr restart -d --name here-$name /in/$name.cpr >/dev/null || continue
    touch HERE/go-here-$name
    cpr wait here-$name
    echo here-$name: $(cpr logs here-$name | grep -v READY)
done
";

/// What is saved here and goes on there, and the other way round: the same programs at the same places.
const TRAVELLERS: [&str; 2] = ["tree", "timers"];
/// For a job here: nothing that the emulated processor does not have.
const MODEST: [&str; 3] = [
    "/usr/bin/env",
    "LD_BIND_NOW=1",
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-XSAVEC,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-RTM",
];
/// Of the processor here, what the emulated one does not have and such a job does not use.
const UNUSED: [&str; 22] = [
    "rdseed",
    "rdrand",
    "sha_ni",
    "rtm",
    "gfni",
    "vaes",
    "vpclmulqdq",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx512ifma",
    "avx512vbmi",
    "avx512_vbmi2",
    "avx512_bitalg",
    "avx512_vnni",
    "avx512_vpopcntdq",
    "avx512_bf16",
    "avx512_fp16",
    "xsavec",
];

/// Makes the machine's disk, with images made here; or says why it cannot be made.
fn make_disk(cpr: &Cpr, images: &[(String, PathBuf)]) -> Result<PathBuf, String> {
    let root = cpr.work.join("root");
    machine::lay_out(cpr, &root);
    let refused = REFUSED.map(|(victim, _)| victim);
    for victim in VICTIMS.iter().chain(&refused) {
        machine::put_program(&root, &compile(cpr, victim), &Path::new("/bin").join(victim));
    }
    for traveller in TRAVELLERS {
        let program = cpr.work.join(traveller);
        machine::put_program(&root, &program, &program);
    }
    for directory in ["in", "out"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for (name, image) in images {
        fs::copy(image, root.join("in").join(name)).unwrap();
    }
    let boot = BOOT
        .replace("VICTIMS", &VICTIMS.join(" "))
        .replace("REFUSED", &refused.join(" "))
        .replace("TRAVELLERS", &TRAVELLERS.join(" "))
        .replace("HERE", cpr.work.to_str().unwrap());
    fs::write(root.join("boot"), boot).unwrap();
    machine::make_disk(cpr, &root)
}

/// Saves jobs here, for a machine with another kernel and another processor: as they are, and without what the processor
/// has that they do not use.
fn travellers(cpr: &Cpr) -> Vec<(String, PathBuf)> {
    let mut images = Vec::new();
    for traveller in TRAVELLERS {
        let program = compile(cpr, traveller);
        let (job, go) = (
            format!("here-{traveller}"),
            cpr.work.join(format!("go-here-{traveller}")),
        );
        let command = [&MODEST[..], &[program.to_str().unwrap(), go.to_str().unwrap()]].concat();
        cpr.run_detached(&job, &[], &command);
        wait_until(PATIENCE, "it is ready", || cpr.logs(&job).starts_with(b"READY"));
        let whole = cpr.work.join(format!("{traveller}.cpr"));
        cpr.checkpoint(&job, &["--stop", "-o", whole.to_str().unwrap()]);
        let modest = edited(&whole, None, |manifest| {
            let flags = &mut manifest.checkpoint.cpu_flags;
            flags.retain(|flag| !UNUSED.contains(&flag.as_str()));
        });
        let to = cpr.work.join(format!("modest-{traveller}.cpr"));
        fs::rename(modest, &to).unwrap();
        images.push((format!("{traveller}.cpr"), to));
        images.push((format!("{traveller}.whole"), whole));
    }
    images
}

/// Whether the processor here has a feature that the emulated one never has.
fn has_feature(flag: &str) -> bool {
    let only_here = flag.starts_with("avx512") || ["sha_ni", "rtm"].contains(&flag);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags"));
    only_here && flags.is_some_and(|flags| flags.split_whitespace().any(|found| found == flag))
}

fn word_after<'a>(said: &'a str, start: &str) -> &'a str {
    said.lines()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_else(|| panic!("no {start}: {said}"))
}

/// Without anything of the host's kernel: that of the distribution comes without patches and modules of ours.
// LBNL-3.8.2, LBNL-3.2.1, LBNL-2.4.11, LBNL-3.9.1.M3
#[test]
fn jobs_go_on_after_their_machine_was_started_anew() {
    let test = "jobs_go_on_after_their_machine_was_started_anew";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if Command::new(QEMU).arg("--version").output().is_err() {
        note_skip(test, "there is no qemu-system-x86_64");
        return;
    }
    if !install_guest(&cpr, test) {
        return;
    }
    let lacking: Vec<&str> = UNUSED.iter().copied().filter(|flag| has_feature(flag)).collect();
    let disk = match make_disk(&cpr, &travellers(&cpr)) {
        Ok(disk) => disk,
        Err(reason) => {
            note_skip(test, &reason);
            return;
        }
    };
    let first = machine::boot(&cpr, &disk);
    let lines: BTreeSet<&str> = first.lines().collect();
    for victim in VICTIMS {
        assert!(lines.contains(format!("{victim}: saved").as_str()), "{first}");
        assert!(!lines.contains(format!("{victim}: not saved").as_str()), "{first}");
    }
    for (victim, why) in REFUSED {
        let said = word_after(&first, &format!("{victim}: "));
        assert!(said.contains(why), "{said}");
    }
    for name in TRAVELLERS {
        let image = cpr.work.join(format!("from-there-{name}.cpr"));
        machine::take_from_disk(&cpr, &disk, &format!("/out/{name}.cpr"), &image);
        let job = format!("there-{name}");
        cpr.cpr(["restart", "-d", "--name", &job, image.to_str().unwrap()])
            .good();
        fs::write(cpr.work.join(format!("go-there-{name}")), "").unwrap();
        assert_eq!(cpr.wait(&job), 0, "{}", String::from_utf8_lossy(&cpr.logs(&job)));
    }
    let second = machine::boot(&cpr, &disk);
    assert_ne!(word_after(&first, "started "), word_after(&second, "started "));
    for victim in VICTIMS {
        assert_eq!(word_after(&second, &format!("{victim}: ")), "OK", "{second}");
    }
    for name in TRAVELLERS {
        assert_eq!(word_after(&second, &format!("here-{name}: ")), "OK", "{second}");
        if lacking.is_empty() {
            continue;
        }
        let refused = word_after(&second, &format!("whole-{name}: "));
        assert!(refused.contains("processor lacks features"), "{refused}");
        let named: BTreeSet<&str> = refused.split([' ', ',']).collect();
        for flag in &lacking {
            assert!(named.contains(flag), "{flag}: {refused}");
        }
    }
}
