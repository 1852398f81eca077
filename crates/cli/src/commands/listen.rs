//! `cpr listen`: what happens to the job that it is part of, line by line, for scripts.

use std::io::BufRead;

use cpr_types::{Context as _, Error, ErrorKind, Result};
use gridcpr::{Context, Event, Notice, Verdict};
use rustix::process::Signal;
use serde_json::json;

use crate::args::Listen;
use crate::output::{Output, clean};

pub fn listen(output: Output, args: &Listen) -> Result<u8> {
    let what = || "listen to what happens to this job";
    // It has no use without its script. Whoever is not there any more now is not waited for.
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(std::io::Error::from)
        .context(what)?;
    if rustix::process::getppid() != parent {
        return Err(Error::new(ErrorKind::Gone, "who has started this has ended"));
    }
    let ask = args.ask;
    gridcpr::register(Context::Thread, move |notice| {
        if tell(output, notice).is_err() {
            // Nobody reads it any more.
            std::process::exit(0);
        }
        match ask && notice.event == Event::Before {
            true => answer(),
            false => Verdict::Ready,
        }
    })?;
    output.answer(|| json!({"event": "listening"}), || "listening\n".into())?;
    loop {
        std::thread::park();
    }
}

/// One line for what happens.
fn tell(output: Output, notice: &Notice) -> Result<()> {
    let number = notice.checkpoint;
    let name = match notice.event {
        Event::Before => "before",
        Event::Continue if notice.failed => "failed",
        Event::Continue => "continue",
        Event::Restart => "restart",
        Event::Told => "told",
    };
    let restart = match notice.event {
        Event::Restart => gridcpr::restarted()?,
        _ => None,
    };
    let told = (notice.event == Event::Told).then(|| clean(notice.reason()));
    output.answer(
        || {
            let restart = restart.as_ref();
            json!({
                "event": name,
                "generation": (notice.event != Event::Told).then_some(number),
                "restarts": notice.restarts,
                "image": restart.map(|restart| &restart.image),
                "job": restart.map(|restart| &restart.job),
                "reason": told,
            })
        },
        || match (&restart, &told) {
            (Some(restart), _) => format!("{name} {number} {} {} {}\n", restart.times, restart.image, restart.job),
            (None, Some(reason)) => format!("{name} {reason}\n"),
            (None, None) => format!("{name} {number}\n"),
        },
    )
}

/// What the script says before a checkpoint: `ready`, `later` or `refuse`, and why.
fn answer() -> Verdict {
    let mut line = String::new();
    if !matches!(std::io::stdin().lock().read_line(&mut line), Ok(length) if length > 0) {
        return Verdict::Ready;
    }
    let (word, why) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    if !why.is_empty() {
        gridcpr::explain(why);
    }
    match word {
        "ready" => Verdict::Ready,
        "later" => Verdict::Later,
        _ => Verdict::Refuse,
    }
}
