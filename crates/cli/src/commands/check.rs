//! `cpr check`

use cpr_engines::Devices;
use cpr_kernel::namespace;
use cpr_node::Blocker;
use cpr_types::{ErrorKind, Result};
use gridcpr::image::Image;
use serde_json::{Value, json};

use crate::args::Namespace;
use crate::args::images::Check;
use crate::output::{Output, clean};
use crate::target::{Live, is_image, live};

pub fn check(output: Output, args: &Check) -> Result<u8> {
    let image = args.target.as_deref().filter(|target| is_image(target));
    let (verdict, what, kind, blockers) = if let Some(path) = image {
        let mut image = Image::open(path)?;
        image.open_ancestors()?;
        let what = format!("image {}", path.display());
        let blockers =
            cpr_node::engine::check_restart(&image, own_namespace(&image, args.namespace), &Devices::load())?;
        ("restartable", what, ErrorKind::Incompatible, blockers)
    } else {
        let (what, blockers) = match live(args.target.as_deref(), args.session)? {
            Live::Job(job) => (format!("job {}", job.name()), job.check()?),
            Live::Bare(bare) => (bare.to_string(), cpr_node::check_bare(bare)?),
        };
        ("checkpointable", what, ErrorKind::Unsupported, blockers)
    };
    output.done(
        || report_json(verdict, &blockers),
        || {
            let verb = if verdict == "restartable" {
                "restarted here"
            } else {
                "checkpointed"
            };
            report_text(&what, verb, &blockers)
        },
    )?;
    Ok(if blockers.is_empty() { 0 } else { kind.exit_code() })
}

/// Whether a restart would give the job a PID namespace of its own.
fn own_namespace(image: &Image, choice: Namespace) -> bool {
    match choice {
        Namespace::Always => true,
        Namespace::Never => false,
        Namespace::Auto => image.manifest().checkpoint.own_pid_namespace || !namespace::may_choose_pids(),
    }
}

fn report_json(verdict: &str, blockers: &[Blocker]) -> Value {
    let list: Vec<Value> = blockers
        .iter()
        .map(|b| json!({"pid": b.pid, "object": b.object, "reason": b.reason, "hint": b.hint}))
        .collect();
    json!({verdict: blockers.is_empty(), "blockers": list})
}

fn report_text(what: &str, verb: &str, blockers: &[Blocker]) -> String {
    if blockers.is_empty() {
        return format!("{} can be {verb}\n", clean(what));
    }
    let mut text = format!("{} cannot be {verb}:\n", clean(what));
    for blocker in blockers {
        let process = match blocker.pid {
            0 => String::new(),
            pid => format!("process {pid}: "),
        };
        let line = format!("{process}{}: {}", blocker.object, blocker.reason);
        text.push_str(&format!("  {}\n", clean(&line)));
        if let Some(hint) = &blocker.hint {
            text.push_str(&format!("    hint: {}\n", clean(hint)));
        }
    }
    text
}
