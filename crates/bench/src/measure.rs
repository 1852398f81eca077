//! One case with one tool in one place: the rounds, and what came out of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::Serialize;

use crate::cases::Case;
use crate::command::{Running, run};
use crate::heartbeat::{Heartbeat, Order, PROMPT, Word};
use crate::limit;
use crate::tool::{PATIENCE, Tool};
use crate::usage::{Sampler, Usage};

/// The undisturbed heartbeat is watched for as long as the checkpoint took, within these bounds.
const SHORTEST_WATCH: Duration = Duration::from_millis(20);
const LONGEST_WATCH: Duration = Duration::from_secs(5);
/// How long filling the memory may take, besides a time for each GiB.
const SETTLE: Duration = Duration::from_secs(120);

/// The samples of one figure, one for each round.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figure {
    /// In the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// All, in order of time.
    pub samples: Vec<f64>,
}

impl Figure {
    /// Of at least one sample.
    fn of(samples: Vec<f64>) -> Figure {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            at(middle)
        } else {
            (at(middle.saturating_sub(1)) + at(middle)) / 2.0
        };
        Figure {
            median,
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            samples,
        }
    }
}

/// What was measured. Times are milliseconds, sizes bytes, rates 10^6 bytes a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Largest gap of the heartbeat around a checkpoint after which the victim goes on.
    pub freeze_ms: Figure,
    /// Largest gap in as long a time without a checkpoint.
    pub undisturbed_ms: Figure,
    /// The checkpoint command, from start to end.
    pub checkpoint_ms: Figure,
    /// The same, and a sync of the image after it.
    pub durable_ms: Figure,
    /// A plain write and sync of as many bytes.
    pub write_ms: Figure,
    /// The command that makes a checkpoint and ends the victim.
    pub stop_ms: Figure,
    /// From the victim's last heartbeat to the end of that command.
    pub stopped_ms: Figure,
    /// From the start of the restart command to the first heartbeat.
    pub restart_ms: Figure,
    /// The restart command, from start to end.
    pub restart_command_ms: Figure,
    /// A plain read of the image.
    pub read_ms: Figure,
    /// The image.
    pub image_bytes: Figure,
    /// What the writer reached while nothing disturbed it.
    pub written_mb_s: Figure,
    /// What the writer reached while the checkpoint was made.
    pub written_meanwhile_mb_s: Figure,
    /// What the tool cost in a checkpoint of its own.
    pub usage: Usage,
}

/// One round.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    freeze: Duration,
    undisturbed: Duration,
    checkpoint: Duration,
    sync: Duration,
    write: Duration,
    stop: Duration,
    stopped: Duration,
    restart: Duration,
    restart_command: Duration,
    read: Duration,
    image_bytes: u64,
    written: f64,
    written_meanwhile: f64,
}

/// One case with one tool in one place.
pub struct Measurement<'a> {
    /// The case.
    pub case: &'a Case,
    /// The tool, without a victim yet.
    pub tool: &'a mut dyn Tool,
    /// A directory on the file system to be measured.
    pub place: &'a Path,
    /// A directory in memory, for the page of the heartbeat.
    pub memory_place: &'a Path,
    /// How many rounds are timed.
    pub runs: usize,
}

impl Measurement<'_> {
    /// Starts the victim, measures it and ends it.
    ///
    /// # Errors
    /// Whatever a command of the tool says; [`ErrorKind::Gone`] when the victim dies; [`ErrorKind::Damaged`] when its
    /// memory is not what it was; [`ErrorKind::TimedOut`]; [`ErrorKind::Cancelled`] on Ctrl-C.
    pub fn run(mut self) -> Result<Figures> {
        let path = self.memory_place.join("heartbeat");
        let page = Heartbeat::open(&path, true)?;
        let victim = self.case.victim(&path, self.memory_place)?;
        let result = self.tool.start(&victim).and_then(|()| self.rounds(&page));
        page.send(Order::End);
        self.tool.end();
        result
    }

    fn rounds(&mut self, page: &Heartbeat) -> Result<Figures> {
        let processes = self.case.processes;
        let per_gib = Duration::from_secs(60) * (self.case.bytes >> 30) as u32;
        page.wait(self.tool.victim()?, "its memory to be filled", SETTLE + per_gib, || {
            page.get(Word::Ready) == processes
        })?;
        // Costs are sampled in a round of their own, which warms everything up besides.
        let usage = self.sample(page)?;
        let mut rounds = Vec::new();
        for _ in 0..self.runs {
            rounds.push(self.round(page)?);
        }
        page.order(self.tool.victim()?, Order::Verify, processes, SETTLE + per_gib)?;
        match page.get(Word::Wrong) {
            0 => Ok(summary(&rounds, usage)),
            wrong => {
                let text = format!("{} came back with {wrong} altered pages", self.case.title);
                Err(Error::new(ErrorKind::Damaged, text))
            }
        }
    }

    /// Where the case is about increments: makes the image before, has memory written, and gives that image.
    fn base(&mut self, page: &Heartbeat) -> Result<Option<PathBuf>> {
        if self.case.rewrite_percent == 0 {
            return Ok(None);
        }
        let command = self.tool.checkpoint(false)?;
        let ended = run(command, PATIENCE)?;
        let image = self.tool.checkpointed(&ended.output, false)?;
        page.order(self.tool.victim()?, Order::Rewrite, self.case.processes, SETTLE)?;
        Ok(Some(image))
    }

    /// A checkpoint under the eyes of the sampler.
    fn sample(&mut self, page: &Heartbeat) -> Result<Usage> {
        let base = self.base(page)?;
        let command = self.tool.checkpoint(false)?;
        let sampler = Sampler::start(self.tool.program())?;
        let ended = run(command, PATIENCE);
        let usage = sampler.finish()?;
        let image = self.tool.checkpointed(&ended?.output, false)?;
        limit::remove(&image)?;
        base.map_or(Ok(()), |base| limit::remove(&base))?;
        Ok(usage)
    }

    fn round(&mut self, page: &Heartbeat) -> Result<Round> {
        let mut round = Round::default();
        self.live(page, &mut round)?;
        round.write = limit::write(self.place, round.image_bytes)?;
        self.stop_and_restart(page, &mut round)?;
        Ok(round)
    }

    /// A checkpoint after which the victim goes on, and as much time without one.
    fn live(&mut self, page: &Heartbeat, round: &mut Round) -> Result<()> {
        let base = self.base(page)?;
        let command = self.tool.checkpoint(false)?;
        page.watch(self.tool.victim()?)?;
        let (written, begun) = (page.get(Word::Written), Instant::now());
        let ended = run(command, PATIENCE)?;
        round.written_meanwhile = rate(page.get(Word::Written) - written, begun.elapsed());
        round.freeze = page.largest_gap(self.tool.victim()?)?;
        round.checkpoint = ended.wall;
        let image = self.tool.checkpointed(&ended.output, false)?;
        round.sync = limit::sync(&image)?;
        round.image_bytes = limit::length(&image)?;
        limit::remove(&image)?;
        base.map_or(Ok(()), |base| limit::remove(&base))?;

        let time = ended.wall.clamp(SHORTEST_WATCH, LONGEST_WATCH);
        page.watch(self.tool.victim()?)?;
        let (written, begun) = (page.get(Word::Written), Instant::now());
        page.wait(self.tool.victim()?, "a while to pass", time * 2, || {
            begun.elapsed() >= time
        })?;
        round.written = rate(page.get(Word::Written) - written, begun.elapsed());
        round.undisturbed = page.largest_gap(self.tool.victim()?)?;
        Ok(())
    }

    /// A checkpoint that ends the victim, and its return.
    fn stop_and_restart(&mut self, page: &Heartbeat, round: &mut Round) -> Result<()> {
        let ended = run(self.tool.checkpoint(true)?, PATIENCE)?;
        // Both sides read the same clock; this process reads it a little later than the command ended.
        let now = cpr_kernel::process::clock_ns(rustix::time::ClockId::Monotonic);
        let since = Duration::from_nanos(now.saturating_sub(page.get(Word::Last)));
        round.stop = ended.wall;
        round.stopped = since.saturating_sub(ended.at.elapsed());
        let image = self.tool.checkpointed(&ended.output, true)?;

        let beats = page.get(Word::Beats);
        let mut running = Running::start(self.tool.restart()?)?;
        let begun = running.begun();
        let restarted = loop {
            if page.get(Word::Beats) != beats {
                break Some(begun.elapsed());
            }
            if running.has_failed() || begun.elapsed() > PATIENCE {
                break None;
            }
            crate::interrupt::check()?;
            std::thread::sleep(LOOK);
        };
        round.restart_command = running.finish(PATIENCE)?.wall;
        round.restart =
            restarted.ok_or_else(|| Error::new(ErrorKind::TimedOut, "the restarted victim gives no sign of life"))?;
        self.tool.restarted()?;
        round.read = limit::read(&image)?;
        page.wait(self.tool.victim()?, "the victim's heartbeat", PROMPT, || {
            page.get(Word::Beats) > beats + 2
        })
        .context(|| "after the restart")?;
        limit::remove(&image)
    }
}

/// How often the first heartbeat of a restart is looked for.
const LOOK: Duration = Duration::from_micros(50);

/// In 10^6 bytes a second.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

fn summary(rounds: &[Round], usage: Usage) -> Figures {
    let figure = |value: &dyn Fn(&Round) -> f64| Figure::of(rounds.iter().map(value).collect());
    let time = |value: &dyn Fn(&Round) -> Duration| figure(&|round| value(round).as_secs_f64() * 1e3);
    Figures {
        freeze_ms: time(&|round| round.freeze),
        undisturbed_ms: time(&|round| round.undisturbed),
        checkpoint_ms: time(&|round| round.checkpoint),
        durable_ms: time(&|round| round.checkpoint + round.sync),
        write_ms: time(&|round| round.write),
        stop_ms: time(&|round| round.stop),
        stopped_ms: time(&|round| round.stopped),
        restart_ms: time(&|round| round.restart),
        restart_command_ms: time(&|round| round.restart_command),
        read_ms: time(&|round| round.read),
        image_bytes: figure(&|round| round.image_bytes as f64),
        written_mb_s: figure(&|round| round.written),
        written_meanwhile_mb_s: figure(&|round| round.written_meanwhile),
        usage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let figure = Figure::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((figure.median, figure.min, figure.max), (2.0, 1.0, 3.0));
        assert_eq!(Figure::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Figure::of(vec![7.0]).median, 7.0);
    }
}
