//! The operator's guide: every command in it is run as it stands there, by root on a host of its own, with the
//! configurations that it shows.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::*;

/// Makes the host: `/etc`, `/run` and `/var/lib` of its own, the addresses of both machines, and an account. There is
/// no systemd: a unit that is spoken of is looked for among those we install.
const HOST: &str = r#"
cp -a /etc etc; mount --bind etc /etc; mkdir -p /etc/gridcpr
echo 'ada:x:65534:65534::/:/bin/sh' >>/etc/passwd
for place in /var/lib /run; do mount -t tmpfs -o mode=755 none $place; done
cd work
ip link set lo up
for address in 254 1; do ip address add 10.0.0.$address/32 dev lo; done
systemctl() { test -f "$UNITS/${!#}.service.in"; }
background() { "$@" & last=$!; }
finish() { kill $last; wait $last || true; }
within() { for try in $(seq 600); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.1; done; "$@"; }
has() { local said; said=$("${@:2}") && [[ $said =~ $1 ]]; }
"#;

/// In this order. A line that begins with `$` is a command of the guide, one with `&` the same and goes on in the
/// background; `@ FILE LINE` writes what the guide shows under that first line to the end of a file. All other lines
/// see to it that there is something to work on, and that it worked.
const COMMANDS: &str = r#"
& cprd all
within has ready cpr nodes
mount -t tmpfs none /usr/local/lib
if cprd check; then false; fi
touch /usr/local/lib/libgridcpr.so
$ cprd check
printf '#!/bin/sh\nexec sleep 1000\n' >sim; chmod +x sim; touch input.dat
$ cpr submit --every 10m --name sim -- ./sim input.dat
$ cpr jobs
within has running cpr jobs
$ cpr suspend @1
cd /var/lib/cprd/grid
$ sqlite3 grid.db '.backup copy.db'
finish
rm grid.db*
mv copy.db grid.db
cd -
& cprd all
within has ready cpr nodes
$ cpr recover 1
within has running cpr jobs
$ cpr jobs --all
$ cpr events --json
has job.suspended cpr events --json
cpr cancel 1
$ cpr submit --units 3 -- ./sim input.dat
has '3 units|waits' cpr jobs
printf 'command = ["./sim"]\n[[units]]\n[[units]]\nslots = 100000\n' >coupled.toml
$ cpr submit --file coupled.toml
within has 'unit 1: waits' cpr queue
$ cpr events --kind checkpoint.step
$ cpr events --kind unit.waiting
$ cpr events --kind checkpoint.own
$ cpr checkpoints --json
$ cpr jobs --json
$ cpr usage
has 'root *[0-9]' cpr usage
cpr submit --name kept -- ./sim
within has 'kept *[a-z]* *running' cpr jobs
$ cpr policy 4 --every 5m --keep 3
has '"every_s": *300' cpr jobs 4 --json
$ cpr checkpoint @4
$ cpr transfer 2 $(uname -n)
$ cpr checkpoint @4
$ cpr free 2
has freed cpr checkpoints --all
$ cpr checkpoints --json
$ cpr jobs --json
$ cprd schema
has Checkpoint cprd schema
cpr cancel 4
cpr cancel 2
cpr cancel 3
finish
mv /var/lib/cprd /var/lib/first

$ cprd ca init
$ cprd ca issue grid --role service --host 10.0.0.254 --to /etc/gridcpr
$ cprd ca issue n1 --role node --host 10.0.0.1
$ cprd ca issue ada
@ /etc/gridcpr/cprd.toml # /etc/gridcpr/cprd.toml of the service
$ cprd --config FILE config check
$ cprd --config FILE config show
has lease_ms cprd --config /etc/gridcpr/cprd.toml config show
& cprd --config /etc/gridcpr/cprd.toml grid
within cpr nodes
& cpr events --follow
finish
$ cprd --config /etc/gridcpr/cprd.toml token ada > ada.token
export GRIDCPR_CA=/etc/gridcpr/ca/ca.pem
over_network() { GRIDCPR_GRID=https://10.0.0.254:7700 "$@"; }
over_network env GRIDCPR_TOKEN_FILE=ada.token cpr jobs
as_ada() { over_network env GRIDCPR_CERTIFICATE=ada.pem GRIDCPR_KEY=ada.key cpr jobs; }
as_ada
$ cprd ca revoke ada
if as_ada; then false; fi
mv /etc/gridcpr/cprd.toml service.toml
cp n1.pem n1.key /etc/gridcpr/ca/ca.pem /etc/gridcpr/ca/revoked.pem /etc/gridcpr
@ /etc/gridcpr/cprd.toml # /etc/gridcpr/cprd.toml of node n1
& cprd node
within has 'n1.*ready' cpr nodes
$ cpr nodes
$ cpr nodes --json
has '"basic": *[[]"native"' cpr nodes --json
$ cpr drain NODE
has 'n1.*draining' cpr nodes
$ cpr drain --undo NODE
has 'n1.*ready' cpr nodes
$ cpr fault NODE REASON
has 'n1.*draining: REASON' cpr nodes
cpr drain --undo n1
has 'n1.*ready' cpr nodes
$ cprd openapi
has '"openapi"' cprd openapi

$ openssl rand -hex 32 > /etc/gridcpr/store.keys
printf 'ACCESS\nSECRET\n' >/etc/gridcpr/s3.keys
openssl rand -hex 32 >/etc/gridcpr/hook.secret
chmod 600 /etc/gridcpr/s3.keys /etc/gridcpr/hook.secret /etc/gridcpr/store.keys
@ service.toml [s3]
@ service.toml [encryption]
@ service.toml [[webhook]]
cprd --config service.toml config check
$ systemctl enable --now cprd-node
$ systemctl reload cprd-grid
"#;

/// What is not run here: the one puts files into the system, the other takes long.
const ELSEWHERE: [&str; 2] = ["make install", "make bench-grid"];

/// Commands of a document, in blocks and in its text, and its configurations.
fn contents(document: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut commands, mut configurations) = (Vec::new(), Vec::new());
    for (number, part) in document.split("```").enumerate() {
        if number % 2 == 0 {
            let programs = ["cpr ", "cprd ", "make ", "openssl ", "sqlite3 ", "systemctl "];
            let codes = part.split('`').skip(1).step_by(2);
            commands.extend(codes.filter(|code| programs.iter().any(|program| code.starts_with(program))));
            continue;
        }
        let (kind, body) = part.split_once('\n').unwrap();
        match kind {
            "sh" => commands.extend(body.lines()),
            "console" => commands.extend(body.lines().filter_map(|line| line.strip_prefix("$ "))),
            "toml" => configurations.push(body),
            "text" => {}
            other => panic!("nothing is known of blocks of {other:?}"),
        }
    }
    (commands, configurations)
}

// GFD93-RES-6
#[test]
fn every_command_of_the_operators_guide_works() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(here.join("../../docs/operations.md")).unwrap();
    let (commands, configurations) = contents(&guide);
    assert!(commands.len() > 20 && configurations.len() > 4, "{commands:?}");
    let run: Vec<&str> = COMMANDS
        .lines()
        .filter_map(|line| line.strip_prefix("$ ").or(line.strip_prefix("& ")))
        .collect();
    for command in &commands {
        // In its text the guide may leave arguments out.
        let is_run = |run: &&str| {
            run.strip_prefix(command)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let known = run.iter().any(is_run) || ELSEWHERE.contains(command);
        assert!(known, "no test runs this command of docs/operations.md: {command}");
    }
    for configuration in &configurations {
        let first = configuration.lines().next().unwrap();
        let known = COMMANDS
            .lines()
            .any(|line| line.starts_with('@') && line.ends_with(first));
        assert!(known, "no test uses this configuration of docs/operations.md: {first}");
    }
    if !am_root() {
        return skipped("the operator's guide: only root can make a host for it");
    }

    let mut script = format!("set -eu -o pipefail\n{HOST}set -x\n");
    for line in COMMANDS.lines() {
        let filled = |command: &str| command.replace("FILE", "/etc/gridcpr/cprd.toml").replace("NODE", "n1");
        let lines = match line.split_once(' ') {
            Some(("$", command)) => filled(command),
            Some(("&", command)) => format!("background {}", filled(command)),
            Some(("@", place)) => {
                let (file, first) = place.split_once(' ').unwrap();
                let shown = configurations.iter().find(|text| text.lines().next() == Some(first));
                format!("cat >>{file} <<'END'\n{}END", shown.expect(first))
            }
            _ => line.to_string(),
        };
        script.push_str(&lines);
        script.push('\n');
    }
    let site = Site::new();
    fs::write(site.path("script"), script).unwrap();
    let output = Command::new("timeout")
        .args([
            "--signal=KILL",
            "120",
            "unshare",
            "--net",
            "--pid",
            "--mount",
            "--mount-proc",
        ])
        .args(["--fork", "--kill-child=KILL", "bash", "script"])
        .current_dir(site.path(""))
        .env(
            "PATH",
            format!("{}:{}", site.path("").display(), std::env::var("PATH").unwrap()),
        )
        .env("UNITS", here.join("systemd"))
        .env_remove("GRIDCPR_GRID")
        .output()
        .unwrap();
    let told = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{}: {}\n{}", output.status, told[0], told[1]);
}
