//! Controlling terminals and who is in their foreground.

use std::os::fd::BorrowedFd;

use cpr_image::model::{Manifest, Process};
use cpr_kernel::batch::{Arg, Batch};
use cpr_types::{Error, ErrorKind, Result};

use super::stub::Workshop;
use super::{living, stub};
use crate::files::terminal::JobControl;
use crate::files::{self, RestoreContext};

/// Gives a new session leader its controlling terminal, before others are born into the session.
pub(super) fn take_terminal(
    workshop: &Workshop,
    manifest: &Manifest,
    pid: i32,
    context: &RestoreContext<'_>,
) -> Result<()> {
    let process = manifest.processes.iter().find(|p| p.pid == pid);
    let Some(id) = process.and_then(|p| p.controlling_terminal) else {
        return Ok(());
    };
    let Some(slave) = files::terminal::slave_for(id, context) else {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("process {pid} needs a controlling terminal"),
        )
        .with_hint("restart it with -t"));
    };
    with_descriptor(workshop, pid, slave, |batch, fd| {
        batch.must(
            libc::SYS_ioctl,
            &[fd.into(), libc::TIOCSCTTY.into(), Arg::from(0)],
            "take the controlling terminal",
        );
    })
}

/// Hands a descriptor to a stub, makes calls with it, and closes it there.
pub(super) fn with_descriptor(
    workshop: &Workshop,
    pid: i32,
    fd: BorrowedFd<'_>,
    calls: impl FnOnce(&mut Batch, i32),
) -> Result<()> {
    workshop.send(fd)?;
    let mut batch = Batch::new();
    let out = workshop.receive(&mut batch, stub::number(&workshop.channel_stub), true);
    let outcome = workshop.run(pid, &batch)?;
    let number = stub::received(&outcome, out);
    let mut batch = Batch::new();
    calls(&mut batch, number);
    batch.call(libc::SYS_close, &[number.into()]);
    workshop.run(pid, &batch).map(drop)
}

/// Makes the saved process groups the foreground groups of their terminals.
pub(super) fn foreground(workshop: &Workshop, manifest: &Manifest, context: &RestoreContext<'_>) -> Result<()> {
    let root = manifest.processes.first();
    let is_led_here = |number| manifest.processes.iter().any(|p| p.pid == number);
    for (index, terminal) in manifest.terminals.iter().enumerate() {
        let id = cpr_image::model::TerminalId(index as u32);
        // In a session that is led from outside the terminal is that of whoever restarts.
        let is_given = terminal.external && context.job_control == JobControl::Foreground;
        let is_outer = |p: &Process| root.is_some_and(|root| p.sid == root.sid) && !is_led_here(p.sid);
        let may = |p: &&Process| p.controlling_terminal == Some(id) && (p.pid == p.sid || is_given && is_outer(p));
        let Some(member) = living(manifest).find(may) else {
            continue;
        };
        let group = terminal.foreground_group;
        // The group that the job was born into is now that of whoever restarts, and where it should be.
        let is_inherited = root.is_some_and(|root| group == root.pgid) && !is_led_here(group);
        let exists = manifest.processes.iter().any(|p| p.pgid == group) && !is_inherited;
        let Some(slave) = files::terminal::slave_for(id, context).filter(|_| exists) else {
            continue;
        };
        let group = workshop.seen(member.pid, group)?;
        with_descriptor(workshop, member.pid, slave, |batch, fd| {
            let group = batch.data(&group.to_ne_bytes());
            batch.must(
                libc::SYS_ioctl,
                &[fd.into(), libc::TIOCSPGRP.into(), group],
                "set the foreground process group",
            );
        })?;
    }
    Ok(())
}
