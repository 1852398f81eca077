//! Which job goes to which node: a pure function.

use std::collections::BTreeSet;

use cpr_api::model::{Checkpoint, Job, JobSpec, NATIVE, NodeInfo};

use crate::units;

/// A node that takes jobs, and what of it is free.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    pub(crate) info: NodeInfo,
    /// What nobody has, and nobody is to have.
    pub(crate) room: Room,
    /// Jobs that run there, or have units there.
    pub(crate) running: Vec<Tenant>,
    /// What is kept for jobs that wait until others have gone.
    pub(crate) kept: Room,
}

/// A job that runs, and what it takes of one node.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) job: Job,
    pub(crate) room: Room,
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
        Room::of_spec(&job.spec)
    }

    /// What a job or unit takes that is like this.
    pub(crate) fn of_spec(spec: &JobSpec) -> Room {
        Room {
            slots: spec.slots(),
            memory_mb: spec.memory_mb,
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

/// The property of nodes that reach the grid's area for files.
const AREA: &str = "area";
/// What asks for an engine among the properties that a job requires.
const ENGINE: &str = "engine";
/// What asks for any engine of a class.
const CLASS: &str = "class";

/// The engine that saves a job on a node: the one it asks for, else the preferred one of the class it asks for, else
/// ours. None where the node has no such one.
pub(crate) fn engine(spec: &JobSpec, info: &NodeInfo) -> Option<String> {
    let wanted = spec.requires.get(ENGINE);
    let members = match spec.requires.get(CLASS) {
        // Whoever asks for nothing is run anywhere (GCA-CTS-27).
        None if spec.needs.is_empty() => return Some(wanted.map_or_else(|| NATIVE.to_string(), String::clone)),
        None => &info.engines,
        Some(class) => info.classes.get(class)?,
    };
    let able = |engine: &String| info.abilities.get(engine).is_some_and(|able| able.have(&spec.needs));
    let fits = |engine: &&String| wanted.is_none_or(|wanted| wanted == *engine);
    let mut members = members.iter().filter(fits);
    members.find(|engine| spec.needs.is_empty() || able(engine)).cloned()
}

/// What a job needs of a node that goes on from an image: the engine that made it, too.
pub(crate) fn needs(spec: &JobSpec, image: Option<&Checkpoint>) -> JobSpec {
    let mut needs = spec.clone();
    if let Some(image) = image.filter(|image| image.engine != NATIVE) {
        needs.requires.insert(ENGINE.to_string(), image.engine.clone());
    }
    needs
}

/// Why a node cannot have a job, or that it can (GCA-UC-5.1.1).
fn objection(spec: &JobSpec, only: Option<&str>, node: &Free) -> Option<String> {
    if let Some(reason) = unsuitable(spec, only, &node.info) {
        return Some(reason);
    }
    let full = !node.room.minus(node.kept).holds(Room::of_spec(spec));
    full.then(|| format!("{} is full", node.info.name))
}

/// Why a node cannot have a job even when it is empty. `only`: the node that somebody chose for its next start.
fn unsuitable(spec: &JobSpec, only: Option<&str>, info: &NodeInfo) -> Option<String> {
    let wanted = only.or(spec.node.as_deref());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != info.name) {
        return Some(format!("only {wanted} may have it"));
    }
    if spec.uses_area() && info.properties.get(AREA).is_none_or(|has| has != "yes") {
        return Some(format!("{} reaches no area for files", info.name));
    }
    let lacking = spec.requires.iter().find(|(key, value)| match key.as_str() {
        ENGINE => !info.engines.contains(value),
        CLASS => !info.classes.contains_key(*value),
        key => info.properties.get(key) != Some(value),
    });
    if let Some((key, value)) = lacking {
        return Some(format!("{} has no {key}={value}", info.name));
    }
    if engine(spec, info).is_none() && !spec.needs.is_empty() {
        let needs = spec.needs.iter().map(|(key, value)| format!("{key}={value}"));
        let needs = needs.collect::<Vec<_>>().join(" ");
        return Some(format!("{} has no such engine with {needs}", info.name));
    }
    if engine(spec, info).is_none() {
        let wanted = |key| spec.requires.get(key).map_or("", String::as_str);
        return Some(format!(
            "{} is not of class {} on {}",
            wanted(ENGINE),
            wanted(CLASS),
            info.name
        ));
    }
    let whole = Room {
        slots: info.slots,
        memory_mb: info.memory_mb,
    };
    (!whole.holds(Room::of_spec(spec))).then(|| format!("{} is too small", info.name))
}

/// Which jobs may be made to go for another one.
#[derive(Debug, Default)]
pub(crate) struct GiveWay {
    /// Those of lower priority.
    pub(crate) lower: bool,
    /// Those of the same priority that have run since then, or for longer.
    pub(crate) since_ms: Option<i64>,
    /// Never these, which could not be saved lately.
    pub(crate) stuck: BTreeSet<i64>,
}

impl GiveWay {
    /// Whether no job ever is.
    fn is_off(&self) -> bool {
        !self.lower && self.since_ms.is_none()
    }

    /// Whether a job that runs may be made to go for this one.
    fn may(&self, other: &Job, job: &Job) -> bool {
        let has_had_its_turn = || {
            self.since_ms
                .is_some_and(|since| other.started_ms.is_some_and(|at| at <= since))
        };
        let below = match other.spec.priority.cmp(&job.spec.priority) {
            std::cmp::Ordering::Less => self.lower,
            std::cmp::Ordering::Equal => has_had_its_turn(),
            std::cmp::Ordering::Greater => false,
        };
        below && !is_going(other) && units::are_settled(other) && !self.stuck.contains(&other.id)
    }
}

/// Whether a job that runs is going to leave its nodes.
fn is_going(job: &Job) -> bool {
    job.intent.is_some() || job.ending.is_some()
}

/// Which of those that run there are made to go first: of the lowest priority, and among them those that have run for
/// the shortest time; of the same priority as the one that waits (`of`) those that have run for the longest.
fn rank(other: &Job, of: &Job) -> (i32, i64, i64) {
    let started = other.started_ms.unwrap_or(0);
    match other.spec.priority == of.spec.priority {
        true => (other.spec.priority, started, other.id),
        false => (other.spec.priority, started.saturating_neg(), other.id),
    }
}

/// Which jobs have to go from a node that is full, so that a job can have it. Room of those that are going already
/// counts as far as it is not kept for somebody else. None where it would not help, and none that need not.
fn make_room(job: &Job, node: &Free, give_way: &GiveWay) -> Option<Vec<i64>> {
    if unsuitable(&job.spec, job.next_node.as_deref(), &node.info).is_some() {
        return None;
    }
    let wanted = Room::of(job).plus(node.kept);
    let going = node.running.iter().filter(|other| is_going(&other.job));
    let mut room = going.fold(node.room, |room, other| room.plus(other.room));
    let mut candidates: Vec<&Tenant> = node
        .running
        .iter()
        .filter(|other| give_way.may(&other.job, job))
        .collect();
    candidates.sort_by_key(|other| rank(&other.job, job));
    let mut victims = Vec::new();
    for candidate in candidates {
        if room.holds(wanted) {
            break;
        }
        room = room.plus(candidate.room);
        victims.push(candidate);
    }
    if !room.holds(wanted) {
        return None;
    }
    // A small one may have been taken before a large one that does alone.
    victims.retain(|victim| {
        let without = room.minus(victim.room);
        let needed = !without.holds(wanted);
        if !needed {
            room = without;
        }
        needed
    });
    Some(victims.iter().map(|victim| victim.job.id).collect())
}

/// Keeps room for a job on the node where fewest others have to go for it, and tells which these are: none where enough
/// are going already. None at all where it would not help.
pub(crate) fn preempt(job: &Job, nodes: &mut [Free], give_way: &GiveWay) -> Option<Vec<i64>> {
    if give_way.is_off() {
        return None;
    }
    let plans = nodes
        .iter_mut()
        .filter_map(|node| make_room(job, node, give_way).map(|victims| (victims, node)));
    let (victims, node) = plans.min_by_key(|(victims, _)| victims.len())?;
    node.kept = node.kept.plus(Room::of(job));
    Some(victims)
}

/// The same for a job of several units, which needs room for all of them at once; on all nodes together.
pub(crate) fn preempt_for_all(
    job: &Job,
    units: &[Option<(JobSpec, BTreeSet<String>)>],
    nodes: &mut [Free],
    give_way: &GiveWay,
) -> Option<Vec<i64>> {
    if give_way.is_off() {
        return None;
    }
    let tenants = || nodes.iter().flat_map(|node| &node.running).map(|tenant| &tenant.job);
    let going: BTreeSet<i64> = tenants()
        .filter(|other| is_going(other))
        .map(|other| other.id)
        .collect();
    let candidates = tenants().filter(|other| give_way.may(other, job));
    let candidates: BTreeSet<_> = candidates.map(|other| rank(other, job)).collect();
    let candidates: Vec<i64> = candidates.into_iter().map(|(.., id)| id).collect();
    // Where the units would be when these have gone.
    let fits = |nodes: &mut [Free], gone: &[i64]| {
        let before: Vec<Room> = nodes.iter().map(|node| node.room).collect();
        for node in nodes.iter_mut() {
            let goes = |tenant: &&Tenant| going.contains(&tenant.job.id) || gone.contains(&tenant.job.id);
            let left = node.running.iter().filter(goes);
            node.room = left.fold(node.room, |room, tenant| room.plus(tenant.room));
        }
        let chosen = choose_all(units, nodes).ok();
        for (node, room) in nodes.iter_mut().zip(before) {
            node.room = room;
        }
        chosen
    };
    fits(nodes, &candidates)?;
    // The fewest of them, from the first on, that are enough: between `few`, which are not, and `many`.
    let (mut few, mut many) = (0, candidates.len());
    while few < many {
        let middle = few + (many - few) / 2;
        match fits(nodes, &candidates[..middle]) {
            Some(_) => many = middle,
            None => few = middle + 1,
        }
    }
    let mut victims = candidates[..many].to_vec();
    let mut at = 0;
    while at < victims.len() {
        let mut without = victims.clone();
        without.remove(at);
        match fits(nodes, &without) {
            Some(_) => victims = without,
            None => at += 1,
        }
    }
    let places = fits(nodes, &victims)?;
    for (name, unit) in places.into_iter().zip(units) {
        if let (Some(name), Some((spec, _))) = (name, unit)
            && let Some(node) = nodes.iter_mut().find(|node| node.info.name == name)
        {
            node.kept = node.kept.plus(Room::of_spec(spec));
        }
    }
    Some(victims)
}

/// The node for a job, which gets its slots and memory; or why there is none. Among those that can have it, one that
/// holds the image already comes first, then the one with most free slots.
pub(crate) fn choose(job: &Job, nodes: &mut [Free], holders: &BTreeSet<String>) -> Result<String, String> {
    choose_apart(&job.spec, job.next_node.as_deref(), nodes, holders, None)
}

/// The nodes for the units of a job, all or none; a unit that needs none gets none. Units are spread over as many nodes
/// as can have them; those that take most are placed first.
pub(crate) fn choose_all(
    units: &[Option<(JobSpec, BTreeSet<String>)>],
    nodes: &mut [Free],
) -> Result<Vec<Option<String>>, String> {
    let mut order: Vec<usize> = (0..units.len()).collect();
    let room = |number: &usize| units[*number].as_ref().map(|(spec, _)| Room::of_spec(spec));
    order.sort_by_key(|number| {
        let bound = units[*number].as_ref().is_some_and(|(spec, _)| spec.node.is_some());
        let room = room(number).unwrap_or_default();
        std::cmp::Reverse((bound, room.slots, room.memory_mb))
    });
    let before: Vec<Room> = nodes.iter().map(|node| node.room).collect();
    let mut chosen = vec![None; units.len()];
    let mut taken: Vec<String> = Vec::new();
    for number in order {
        let Some((spec, holders)) = &units[number] else {
            continue;
        };
        match choose_apart(spec, None, nodes, holders, Some(&taken)) {
            Ok(node) => {
                taken.push(node.clone());
                chosen[number] = Some(node);
            }
            Err(why) => {
                for (node, room) in nodes.iter_mut().zip(before) {
                    node.room = room;
                }
                return Err(format!("unit {number}: {why}"));
            }
        }
    }
    Ok(chosen)
}

/// As [`choose`]; for a unit before all else one of the nodes that have fewest others, which are in `taken`.
fn choose_apart(
    spec: &JobSpec,
    only: Option<&str>,
    nodes: &mut [Free],
    holders: &BTreeSet<String>,
    taken: Option<&[String]>,
) -> Result<String, String> {
    let mut objections = Vec::new();
    let mut best: Option<&mut Free> = None;
    for node in nodes.iter_mut() {
        if let Some(reason) = objection(spec, only, node) {
            objections.push(reason);
            continue;
        }
        if taken.is_some() && !node.info.has_units {
            objections.push(format!("{} takes whole jobs only", node.info.name));
            continue;
        }
        let key = |node: &Free| {
            let room = node.room.minus(node.kept);
            let others = taken
                .into_iter()
                .flatten()
                .filter(|name| **name == node.info.name)
                .count();
            let holds = holders.contains(&node.info.name);
            (std::cmp::Reverse(others), holds, room.slots, room.memory_mb)
        };
        if best.as_ref().is_none_or(|best| key(node) > key(best)) {
            best = Some(node);
        }
    }
    match best {
        Some(node) => {
            node.room = node.room.minus(Room::of_spec(spec));
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

    fn tenant(job: &Job) -> Tenant {
        Tenant {
            job: job.clone(),
            room: Room::of(job),
        }
    }

    fn lower() -> GiveWay {
        GiveWay {
            lower: true,
            ..GiveWay::default()
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
            running: running.iter().map(tenant).collect(),
            kept: Room::default(),
        }
    }

    #[test]
    fn a_job_is_saved_by_the_engine_it_asks_for_or_one_of_its_class_and_goes_on_with_the_same() {
        let info = NodeInfo {
            engines: ["native", "first", "second"].map(String::from).to_vec(),
            classes: [("kept".to_string(), ["first", "second"].map(String::from).to_vec())].into(),
            ..NodeInfo::default()
        };
        let spec = |requires: &[(&str, &str)]| JobSpec {
            requires: requires.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..JobSpec::default()
        };
        let chosen = |requires: &[(&str, &str)]| engine(&spec(requires), &info);
        assert_eq!(chosen(&[]).as_deref(), Some(NATIVE));
        assert_eq!(chosen(&[("engine", "second")]).as_deref(), Some("second"));
        assert_eq!(chosen(&[("class", "kept")]).as_deref(), Some("first"));
        assert_eq!(chosen(&[("class", "kept"), ("engine", "native")]), None);
        let why = unsuitable(&spec(&[("class", "kept"), ("engine", "native")]), None, &info).unwrap();
        assert!(why.contains("native is not of class kept"), "{why}");
        for missing in [("engine", "third"), ("class", "lost")] {
            assert!(unsuitable(&spec(&[missing]), None, &info).is_some(), "{missing:?}");
        }
        let image = Checkpoint {
            engine: "second".into(),
            ..crate::grid::new_checkpoint(1, &job(1, 0, 1), 1, false, 0)
        };
        let going_on = needs(&spec(&[("class", "kept")]), Some(&image));
        assert_eq!(engine(&going_on, &info).as_deref(), Some("second"));
        assert_eq!(needs(&spec(&[]), None), spec(&[]));
    }

    #[test]
    fn only_jobs_of_lower_priority_have_to_go_and_none_that_need_not() {
        let none = lower();
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
        let stuck = GiveWay {
            stuck: BTreeSet::from([1]),
            ..lower()
        };
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
    fn jobs_of_the_same_priority_take_turns_and_none_goes_before_its_turn_is_over() {
        let turns = |since_ms| GiveWay {
            since_ms: Some(since_ms),
            ..GiveWay::default()
        };
        // They run since 1, 2 and 3.
        let running = [job(1, 2, 1), job(2, 5, 1), job(3, 5, 1)];
        let found = |since, priority| preempt(&job(9, priority, 1), &mut [node(3, &running)], &turns(since));
        assert_eq!(found(1, 5), None);
        assert_eq!(found(2, 5), Some(vec![2]));
        assert_eq!(found(9, 5), Some(vec![2]), "the one that has run for longest");
        assert_eq!(found(9, 6), None, "to make room for higher ones is another matter");
        assert_eq!(found(9, 4), None);
    }

    #[test]
    fn for_units_room_is_made_on_all_nodes_at_once_and_units_go_together() {
        let named = |name: &str, slots, running: &[Job]| {
            let mut node = node(slots, running);
            node.info.name = name.into();
            node.info.has_units = true;
            node
        };
        let unit = |slots| {
            let spec = JobSpec {
                slots: Some(slots),
                ..JobSpec::default()
            };
            Some((spec, none_of()))
        };
        // Job 4 has a unit on each.
        let mut gang = job(4, 3, 1);
        gang.spec.units = vec![cpr_api::model::UnitSpec::default(); 2];
        gang.units = vec![
            cpr_api::model::Unit {
                phase: cpr_api::model::UnitPhase::Running,
                ..Default::default()
            };
            2
        ];
        let fresh = |gang: &Job| {
            [
                named("a", 3, &[job(1, 1, 1), job(2, 4, 1), gang.clone()]),
                named("b", 3, &[job(3, 2, 2), gang.clone()]),
            ]
        };
        let wanted = |priority| job(9, priority, 1);
        for (priority, units, victims) in [
            (1, vec![unit(1), unit(1)], None),
            (2, vec![unit(1)], Some(vec![1])),
            (2, vec![unit(1), unit(1)], None),
            // The larger one alone makes room for both.
            (3, vec![unit(1), unit(1)], Some(vec![3])),
            (3, vec![unit(2), unit(1)], Some(vec![1, 3])),
            (4, vec![unit(2), unit(2)], Some(vec![1, 3, 4])),
            (4, vec![unit(3), unit(3)], None),
            (9, vec![unit(3), unit(3), None], Some(vec![1, 3, 4, 2])),
        ] {
            let mut nodes = fresh(&gang);
            let found = preempt_for_all(&wanted(priority), &units, &mut nodes, &lower());
            let sorted = |ids: Option<Vec<i64>>| ids.map(BTreeSet::from_iter);
            assert_eq!(sorted(found), sorted(victims.clone()), "priority {priority}, {units:?}");
            let kept: u32 = nodes.iter().map(|node| node.kept.slots).sum();
            assert_eq!(kept > 0, victims.is_some());
            assert!(nodes.iter().all(|node| node.room.slots == 0), "nothing is free yet");
        }
        // One whose units are going already is waited for; one of which a unit is not there is left alone.
        gang.intent = Some(Intent::Move(None));
        let mut nodes = fresh(&gang);
        assert_eq!(
            preempt_for_all(&wanted(1), &[unit(1), unit(1)], &mut nodes, &lower()),
            Some(vec![])
        );
        assert!(choose(&job(8, 0, 1), &mut nodes, &none_of()).is_err());
        gang.intent = None;
        gang.units[1].phase = cpr_api::model::UnitPhase::Waiting;
        assert_eq!(preempt(&wanted(9), &mut [named("a", 1, &[gang])], &lower()), None);
    }

    #[test]
    fn room_that_is_kept_for_a_job_is_nobody_elses() {
        let none = lower();
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

    #[test]
    fn units_are_placed_all_or_none_and_spread() {
        let unit = |slots, node: Option<&str>, holder: &str| {
            let spec = JobSpec {
                slots: Some(slots),
                node: node.map(str::to_string),
                ..JobSpec::default()
            };
            Some((spec, BTreeSet::from([holder.to_string()])))
        };
        let named = |name: &str, slots| {
            let mut node = node(slots, &[]);
            node.info.name = name.into();
            node.info.has_units = true;
            node
        };
        let fresh = || [named("a", 4), named("b", 2), named("c", 1)];
        for (units, chosen) in [
            (vec![unit(1, None, ""), unit(1, None, ""), unit(1, None, "")], "abc"),
            // An image that is there already counts less than a node of its own.
            (vec![unit(1, None, "c"), unit(1, None, "c")], "ca"),
            (vec![unit(1, None, ""), unit(4, None, ""), None], "ba-"),
            (vec![unit(1, None, ""), unit(1, Some("a"), "")], "ba"),
            (vec![unit(1, None, ""); 7], "abcabaa"),
        ] {
            let names = choose_all(&units, &mut fresh()).unwrap();
            let names: String = names.iter().map(|name| name.as_deref().unwrap_or("-")).collect();
            assert_eq!(names, chosen);
        }
        let mut nodes = fresh();
        let why = choose_all(&vec![unit(1, None, ""); 8], &mut nodes).unwrap_err();
        assert!(why.contains("is full"), "{why}");
        let left: Vec<u32> = nodes.iter().map(|node| node.room.slots).collect();
        assert_eq!(left, [4, 2, 1], "what some could have had is free again");
        let old = &mut [node(4, &[])];
        assert!(
            choose_all(&[unit(1, None, "")], old)
                .unwrap_err()
                .contains("whole jobs")
        );
    }

    fn none_of() -> BTreeSet<String> {
        BTreeSet::new()
    }
}
