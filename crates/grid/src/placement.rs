//! Which job goes to which node: a pure function.

use std::collections::BTreeSet;

use cpr_api::model::{Job, NodeInfo};

/// A node that takes jobs, and what of it is free.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    pub(crate) info: NodeInfo,
    /// What nobody has, and nobody is to have.
    pub(crate) room: Room,
    /// Jobs that run there.
    pub(crate) running: Vec<Job>,
    /// What is kept for jobs that wait until others have gone.
    pub(crate) kept: Room,
}

/// Slots and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) slots: u32,
    pub(crate) memory_mb: u64,
}

impl Room {
    /// What a job takes.
    pub(crate) fn of(job: &Job) -> Room {
        Room {
            slots: job.spec.slots(),
            memory_mb: job.spec.memory_mb,
        }
    }

    pub(crate) fn plus(self, other: Room) -> Room {
        Room {
            slots: self.slots.saturating_add(other.slots),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
        }
    }

    pub(crate) fn minus(self, other: Room) -> Room {
        Room {
            slots: self.slots.saturating_sub(other.slots),
            memory_mb: self.memory_mb.saturating_sub(other.memory_mb),
        }
    }

    fn holds(self, other: Room) -> bool {
        self.slots >= other.slots && self.memory_mb >= other.memory_mb
    }
}

/// Why a node cannot have a job, or that it can (GCA-UC-5.1.1).
fn objection(job: &Job, node: &Free) -> Option<String> {
    if let Some(reason) = unsuitable(job, &node.info) {
        return Some(reason);
    }
    let full = !node.room.minus(node.kept).holds(Room::of(job));
    full.then(|| format!("{} is full", node.info.name))
}

/// Why a node cannot have a job even when it is empty.
fn unsuitable(job: &Job, info: &NodeInfo) -> Option<String> {
    let wanted = job.next_node.as_ref().or(job.spec.node.as_ref());
    if let Some(wanted) = wanted.filter(|wanted| **wanted != info.name) {
        return Some(format!("only {wanted} may have it"));
    }
    let lacking = job.spec.requires.iter().find(|(key, value)| match key.as_str() {
        "engine" => !info.engines.contains(value),
        key => info.properties.get(key) != Some(value),
    });
    if let Some((key, value)) = lacking {
        return Some(format!("{} has no {key}={value}", info.name));
    }
    let whole = Room {
        slots: info.slots,
        memory_mb: info.memory_mb,
    };
    (!whole.holds(Room::of(job))).then(|| format!("{} is too small", info.name))
}

/// Which jobs of lower priority have to go from a node that is full, so that a job can have it. Room of those that are
/// going already counts as far as it is not kept for somebody else. None where it would not help.
///
/// Jobs of the lowest priority go first, and among them those that have run for the shortest time; and none that need
/// not.
fn make_room(job: &Job, node: &Free, stuck: &BTreeSet<i64>) -> Option<Vec<i64>> {
    if unsuitable(job, &node.info).is_some() {
        return None;
    }
    let wanted = Room::of(job).plus(node.kept);
    let going = node.running.iter().filter(|other| other.intent.is_some());
    let mut room = going.fold(node.room, |room, other| room.plus(Room::of(other)));
    let mut candidates: Vec<&Job> = node
        .running
        .iter()
        .filter(|other| other.intent.is_none() && other.spec.priority < job.spec.priority && !stuck.contains(&other.id))
        .collect();
    candidates.sort_by_key(|other| (other.spec.priority, std::cmp::Reverse(other.started_ms)));
    let mut victims = Vec::new();
    for candidate in candidates {
        if room.holds(wanted) {
            break;
        }
        room = room.plus(Room::of(candidate));
        victims.push(candidate);
    }
    if !room.holds(wanted) {
        return None;
    }
    // A small one may have been taken before a large one that does alone.
    victims.retain(|victim| {
        let without = room.minus(Room::of(victim));
        let needed = !without.holds(wanted);
        if !needed {
            room = without;
        }
        needed
    });
    Some(victims.iter().map(|victim| victim.id).collect())
}

/// Keeps room for a job on the node where fewest others have to go for it, and tells which these are: none where enough
/// are going already. None at all where it would not help. Jobs in `stuck` are left alone.
pub(crate) fn preempt(job: &Job, nodes: &mut [Free], stuck: &BTreeSet<i64>) -> Option<Vec<i64>> {
    let plans = nodes
        .iter_mut()
        .filter_map(|node| make_room(job, node, stuck).map(|victims| (victims, node)));
    let (victims, node) = plans.min_by_key(|(victims, _)| victims.len())?;
    node.kept = node.kept.plus(Room::of(job));
    Some(victims)
}

/// The node for a job, which gets its slots and memory; or why there is none. Among those that can have it, one that
/// holds the image already comes first, then the one with most free slots.
pub(crate) fn choose(job: &Job, nodes: &mut [Free], holders: &BTreeSet<String>) -> Result<String, String> {
    let mut objections = Vec::new();
    let mut best: Option<&mut Free> = None;
    for node in nodes.iter_mut() {
        if let Some(reason) = objection(job, node) {
            objections.push(reason);
            continue;
        }
        let key = |node: &Free| {
            let room = node.room.minus(node.kept);
            (holders.contains(&node.info.name), room.slots, room.memory_mb)
        };
        if best.as_ref().is_none_or(|best| key(node) > key(best)) {
            best = Some(node);
        }
    }
    match best {
        Some(node) => {
            node.room = node.room.minus(Room::of(job));
            Ok(node.info.name.clone())
        }
        None if objections.is_empty() => Err("waits for a node: there is none".into()),
        None => {
            objections.sort();
            objections.dedup();
            objections.truncate(8);
            Err(format!("waits for a node: {}", objections.join(", ")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use cpr_api::model::{Intent, JobSpec, JobState};

    fn job(id: i64, priority: i32, slots: u32) -> Job {
        let spec = JobSpec {
            priority,
            slots: Some(slots),
            ..JobSpec::default()
        };
        Job {
            state: JobState::Running,
            started_ms: Some(id),
            ..crate::lifecycle::new_job(id, spec)
        }
    }

    fn node(slots: u32, running: &[Job]) -> Free {
        let taken = running
            .iter()
            .fold(Room::default(), |taken, job| taken.plus(Room::of(job)));
        let whole = Room { slots, memory_mb: 0 };
        Free {
            info: NodeInfo {
                name: "n".into(),
                slots,
                ..NodeInfo::default()
            },
            room: whole.minus(taken),
            running: running.to_vec(),
            kept: Room::default(),
        }
    }

    #[test]
    fn only_jobs_of_lower_priority_have_to_go_and_none_that_need_not() {
        let none = BTreeSet::new();
        let running = [job(1, 1, 1), job(2, 2, 2), job(3, 5, 1)];
        for (priority, slots, victims) in [
            (0, 1, None),
            (1, 1, None),
            (2, 1, Some(vec![1])),
            (2, 2, None),
            // The one that has most room does alone, though its priority is higher.
            (3, 2, Some(vec![2])),
            (3, 3, Some(vec![1, 2])),
            (5, 4, None),
            (6, 4, Some(vec![1, 2, 3])),
            (9, 5, None),
        ] {
            let found = preempt(&job(9, priority, slots), &mut [node(4, &running)], &none);
            assert_eq!(found, victims, "priority {priority}, {slots} slots");
        }
        let stuck = BTreeSet::from([1]);
        let found = preempt(&job(9, 3, 1), &mut [node(4, &running)], &stuck);
        assert_eq!(found, Some(vec![2]), "one that cannot be saved is left alone");
        let mut nodes = [node(2, &[job(1, 1, 1), job(2, 1, 1)]), node(2, &[job(3, 1, 2)])];
        assert_eq!(
            preempt(&job(9, 2, 2), &mut nodes, &none),
            Some(vec![3]),
            "where fewest go"
        );
    }

    #[test]
    fn room_that_is_kept_for_a_job_is_nobody_elses() {
        let none = BTreeSet::new();
        let mut going = job(1, 1, 2);
        going.intent = Some(Intent::Move(None));
        let mut nodes = [node(4, &[going, job(2, 1, 1)])];
        assert_eq!(
            preempt(&job(7, 3, 3), &mut nodes, &none),
            Some(vec![]),
            "one is going already"
        );
        assert!(
            choose(&job(8, 0, 1), &mut nodes, &none_of()).is_err(),
            "a free slot is kept, too"
        );
        assert_eq!(
            preempt(&job(9, 2, 1), &mut nodes, &none),
            Some(vec![2]),
            "another one needs more"
        );
        assert_eq!(preempt(&job(10, 2, 1), &mut nodes, &none), None);
    }

    fn none_of() -> BTreeSet<String> {
        BTreeSet::new()
    }
}
