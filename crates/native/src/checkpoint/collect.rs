//! Reading the state of a stopped job.

use cpr_image::model::{
    ByteString, Bytes, CgroupNamespaceId, IpcNamespaceId, Manifest, Mounted, NetworkId, Process, ProcessState,
};
use cpr_kernel::namespace::Place;
use cpr_kernel::proc::{MapKind, ProcDir};
use cpr_kernel::process::xstate_features;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::owner::{leading_thread, owner_of};
use super::request::{After, CheckpointRequest, Requester};
use super::{holes, root};
use crate::blockers::Home;
use crate::files::{self, PolicyState, SaveContext, Target};
use crate::freeze::{self, Frozen, Members};
use crate::libraries::Libraries;
use crate::live::Copied;
use crate::memory::{self, FlagTable, Later, MappedFiles, Shared};
use crate::networks::{self, Networks};
use crate::sink::{PAGE_SIZE, PageSink};
use crate::snapshot::Snapshot;
use crate::visits::Visits;
use crate::{
    aio, blockers, cgroups, confined, host_names, ipc, memory_policies, mount_namespaces, pid_namespaces, state,
    time_namespaces, user_namespaces,
};

/// What was found out before the stop.
pub(super) struct Looked {
    pub(super) flags: FlagTable,
    pub(super) libraries: Libraries,
    pub(super) copied: Vec<Copied>,
    pub(super) snapshots: Snapshots,
    /// Those that were taken.
    pub(super) taken: Vec<Taken>,
}

/// What copies of processes are made for in the stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshots {
    /// None are made.
    None,
    /// To read the memory from. Where one cannot be made, it is read from the process as ever.
    Wanted,
    /// To compare the image with.
    ToCompare,
}

/// A copy of a process's memory, and what is to be read from it.
pub(super) struct Taken {
    pub(super) snapshot: Snapshot,
    pub(super) space: cpr_image::model::AddressSpaceId,
    pub(super) later: Vec<Later>,
}

/// Below whose control groups a job is, as far as a restart can have it there again: only root can be sure to.
fn above(members: Members, request: &CheckpointRequest) -> Result<Option<ProcDir>> {
    let above = match members {
        _ if request.initiator_uid != 0 => None,
        Members::Namespace => Some(1),
        Members::Adopted { by, .. } => Some(by),
        // Where a job is that something else started, as a batch system, is for that to say.
        Members::Tree(_) | Members::Session(_) if !request.job.is_empty() => None,
        Members::Tree(_) | Members::Session(_) => Some(std::process::id() as i32),
    };
    let open = |pid| ProcDir::open(pid).context(|| format!("open /proc/{pid}"));
    above.map(open).transpose()
}

/// Reads the whole state of the stopped job.
pub(super) fn collect(
    frozen: &mut Frozen,
    request: &CheckpointRequest,
    requester: Option<i32>,
    looked: &mut Looked,
    manifest: &mut Manifest,
    sink: &mut dyn PageSink,
) -> Result<HeldSockets> {
    let deadline = frozen.deadline();
    let mut layouts = Vec::new();
    let home = Home::of(frozen.scope, request.pid).with_mounts(request.mounts.as_deref());
    let mut host_names = host_names::Saved::default();
    let mut time_namespaces = time_namespaces::Saved::new(time_namespaces::base(frozen, &home)?);
    let (mut places, mut ipc_places) = (Visits::new(Place::Network), Visits::new(Place::Ipc));
    let mut group_places = Visits::new(Place::Cgroup);
    let mut pid_namespaces = pid_namespaces::Saved::default();
    let mut users = user_namespaces::Saved::default();
    let states = state::save(&mut frozen.processes, &home, deadline)?;
    for (process, (mut saved, layout)) in frozen.processes.iter_mut().zip(states) {
        saved.host_names = host_names.of(process, &home, &mut users, deadline)?;
        (saved.time_namespace, saved.time_namespace_of_children) = time_namespaces.of(process, &home, &mut users)?;
        let number = |index: usize| index as u32;
        saved.network = places.of_process(process, &home)?.map(number).map(NetworkId);
        saved.ipc_namespace = ipc_places.of_process(process, &home)?.map(number).map(IpcNamespaceId);
        let group = group_places.of_process(process, &home)?;
        saved.cgroup_namespace = group.map(number).map(CgroupNamespaceId);
        saved.pid_namespace = pid_namespaces.of(process, &home, &mut users)?;
        if !process.threads.is_empty() {
            saved.user_namespace = users.of(&process.proc, &home)?;
        }
        if !process.threads.is_empty() {
            networks::include_those_of_sockets(&process.proc, &home, &mut places)?;
        }
        aio::settle(process, deadline)?;
        manifest.processes.push(saved);
        layouts.push(layout);
    }
    // What completes may change files.
    files::io_uring::drain(&mut frozen.processes, deadline)?;
    let mut mounts = mount_namespaces::Saved::default();
    for (process, saved) in frozen.processes.iter().zip(&mut manifest.processes) {
        if !process.threads.is_empty() {
            let known = mount_namespaces::Known {
                home: &home,
                pids: &pid_namespaces,
                networks: &places,
            };
            saved.mount_namespace = mounts.of(&process.proc, &known, &mut users, sink)?;
        }
        saved.pid_namespace_of_children =
            pid_namespaces.of_children(process, saved.pid_namespace, saved.user_namespace)?;
    }
    let (mount_namespaces, mut views) = mounts.finish()?;
    views.hide(home.made().clone());
    manifest.mount_namespaces = mount_namespaces;
    manifest.pid_namespaces = pid_namespaces.namespaces();
    let mut owners = |places: &Visits| {
        let files = (0..places.len()).filter_map(|index| places.namespace(Some(index)));
        files.map(|file| users.owner(file, &home)).collect::<Result<Vec<_>>>()
    };
    let (network_owners, ipc_owners) = (owners(&places)?, owners(&ipc_places)?);
    manifest.cgroup_namespace_owners = owners(&group_places)?;
    if manifest.cgroup_namespace_owners.iter().all(Option::is_none) {
        manifest.cgroup_namespace_owners.clear();
    }
    manifest.user_namespaces = users.namespaces;
    manifest.host_names = host_names.namespaces;
    manifest.time_namespaces = time_namespaces.namespaces;
    let root_pid = root(frozen, request);
    manifest.checkpoint.root_pid = root_pid;
    pid_namespaces::refuse_unmakeable(manifest)?;
    user_namespaces::refuse_unmakeable(manifest)?;
    time_namespaces::refuse_unmakeable(manifest)?;
    let live: Vec<usize> = (0..frozen.processes.len())
        .filter(|&i| frozen.processes[i].space.is_some())
        .collect();
    let mut targets = Vec::new();
    for &index in &live {
        let pid = frozen.processes[index].pid;
        let target =
            Target::open(pid)?.ok_or_else(|| Error::new(ErrorKind::Gone, format!("process {pid} has ended")))?;
        targets.push(target);
    }
    blockers::refuse_sharing(&targets)?;
    if let Some(first) = targets.iter().find(|target| target.pid == root_pid) {
        let all: Vec<&ProcDir> = targets.iter().map(|target| &target.proc).collect();
        manifest.cgroups = cgroups::save(&first.proc, above(frozen.scope.members, request)?.as_ref(), &all)?;
        cgroups::refuse_other_roots(&group_places, &first.proc)?;
        manifest.cgroup_namespaces = group_places.len() as u32;
    }
    let job = manifest.processes.iter().map(|process| process.pid);
    manifest.networks = networks::save(&places, &job.chain([std::process::id() as i32]).collect())?;
    for (network, owner) in manifest.networks.iter_mut().zip(network_owners) {
        network.owner = owner;
    }
    let places = Networks::new(places);
    let mut context = SaveContext::new(&targets, root_pid, request.tcp, request.after == After::Kill, &places);
    context.queue_state = files::mqueue::SaveState::of(&ipc_places, request.own_ipc_namespace, deadline)?;
    for ((id, index), device) in views.queues() {
        let point = manifest.mount_namespaces[id.index()].tree.get_mut(*index as usize);
        if let Some(point) = point {
            let ipc_namespace = context.queue_state.namespace_of(*device).ok_or_else(|| {
                let text = format!(
                    "what is mounted at {} of a mount namespace is of an IPC namespace outside the job",
                    point.at
                );
                Error::new(ErrorKind::Unsupported, text)
            })?;
            point.mounted = Mounted::Queues { ipc_namespace };
        }
    }
    context.zombies = frozen
        .processes
        .iter()
        .filter(|p| p.space.is_none())
        .map(|p| p.pid)
        .collect();
    // A user's own files are opened with the user's rights, also where root asked.
    let owner = owner_of(manifest).filter(|(uid, _)| *uid != rustix::process::geteuid().as_raw());
    context.requester = requester;
    for process in &manifest.processes {
        if let Some(view) = views.of_process(process.mount_namespace) {
            context.apart.insert(process.pid, view);
        }
    }
    context.views = views;
    context.channels.clone_from(&request.channels);
    context.devices.clone_from(&request.devices);
    context.policies = PolicyState::new(&request.files, owner);
    let mut descriptors = files::save(&mut context)?;
    for (&index, (descriptors, _)) in live.iter().zip(&mut descriptors) {
        files::ask_about_exec(&context, &mut frozen.processes[index], descriptors, deadline)?;
    }
    files::io_uring::finish(&mut context, &mut frozen.processes, deadline)?;
    for &index in &live {
        let view = context.views.of_process(manifest.processes[index].mount_namespace);
        let (proc, saved) = (&frozen.processes[index].proc, &mut manifest.processes[index]);
        let mut save = |name| files::save_deleted_directory(proc, name, view, &mut context.saved);
        (saved.cwd_saved, saved.root_saved) = (save("cwd")?, save("root")?);
        if saved.root_saved.is_some() {
            let root = &saved.root.0;
            saved.root = ByteString(root.strip_suffix(b" (deleted)").unwrap_or(root).to_vec());
        }
    }
    for (&index, (descriptors, locks)) in live.iter().zip(descriptors) {
        manifest.processes[index].descriptors = descriptors;
        manifest.processes[index].posix_locks = locks;
        let pid = manifest.processes[index].pid;
        manifest.processes[index].shares_descriptors = context.table_of_parent.contains(&pid);
        let tty = frozen.processes[index].stat.tty_nr;
        if tty != 0 {
            manifest.processes[index].controlling_terminal =
                context.terminal_state.find(tty, context.apart.get(&pid).copied());
        }
    }
    (manifest.ipc, manifest.ipc_namespaces) =
        ipc::save(frozen, request.own_ipc_namespace, &ipc_places, &home, deadline, sink)?;
    for (namespace, owner) in manifest.ipc_namespaces.iter_mut().zip(ipc_owners) {
        namespace.owner = owner;
    }
    manifest.ipc.posix_queues = std::mem::take(&mut context.queue_state.queues);
    confined::refuse(&mut frozen.processes, &live, manifest, deadline)?;
    let mut mapped = MappedFiles::new(ipc::segment_ids(&manifest.ipc));
    for &index in &live {
        let process = &frozen.processes[index];
        if let Some(space) = &process.space {
            looked.libraries.note(&process.proc, &space.maps);
        }
    }
    let mut shared = Shared {
        flags: &mut looked.flags,
        files: &mut mapped,
        views: &context.views,
        view: None,
        saved: &mut context.saved,
        packet_sockets: (&context.packet_state, &context.packet_sockets),
        io_urings: (&context.io_uring_state, &context.io_urings),
        policies: &mut context.policies,
        libraries: &mut looked.libraries,
        keep_executables: request.keep.executables,
    };
    // A copy would become a child of who adopts orphans, and he would be told of its end.
    let adopted = manifest.processes.iter().any(|process| process.child_subreaper);
    // Nor could we tell what number a copy has that is made in another PID namespace than ours.
    let nested = |manifest: &Manifest, index: usize| {
        let process = &manifest.processes[index];
        process.pid_namespace.is_some() || process.pid_namespace_of_children.is_some()
    };
    let huge = |process: &freeze::Process| process.space.as_ref().is_some_and(memory::has_huge_pages);
    for &index in &live {
        let policies = memory_policies::read(&mut frozen.processes[index], deadline)?;
        let snapshot = match looked.snapshots {
            Snapshots::ToCompare if adopted => {
                let text = "no copy is made of a job that adopts orphans (PR_SET_CHILD_SUBREAPER), so that nothing can be \
                            compared";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint("leave --compare out"));
            }
            Snapshots::ToCompare if huge(&frozen.processes[index]) => {
                let text = "no copy is made of a process with explicit huge pages, so that nothing can be compared";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint("leave --compare out"));
            }
            Snapshots::ToCompare if nested(manifest, index) => {
                let text =
                    "no copy is made of a process in a PID namespace of its own, so that nothing can be compared";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint("leave --compare out"));
            }
            Snapshots::Wanted if adopted || huge(&frozen.processes[index]) || nested(manifest, index) => None,
            Snapshots::None => None,
            Snapshots::Wanted => Snapshot::take(&mut frozen.processes[index], deadline).ok(),
            Snapshots::ToCompare => Some(Snapshot::take(&mut frozen.processes[index], deadline)?),
        };
        let process = &frozen.processes[index];
        let layout = std::mem::take(&mut layouts[index]);
        let id = cpr_image::model::AddressSpaceId(manifest.address_spaces.len() as u32);
        // What is read into memory behind the back of the page tables is not tracked.
        let tracked = !process.space.as_ref().is_some_and(aio::uses);
        let copy = looked.copied.iter().find(|c| tracked && c.pid() == process.pid);
        shared.files.namespace = manifest.processes[index].ipc_namespace;
        shared.view = shared.views.of_process(manifest.processes[index].mount_namespace);
        let mut later = Vec::new();
        let put_off = (snapshot.is_some() && looked.snapshots == Snapshots::Wanted).then_some(&mut later);
        let saved = memory::save(process, layout, &mut shared, copy, put_off, sink);
        if let Some(snapshot) = &snapshot {
            snapshot.reap(&mut frozen.processes[index], deadline)?;
        }
        let mut space = saved?;
        memory_policies::note(&mut space, policies);
        if let Some(snapshot) = snapshot {
            looked.taken.push(Taken {
                snapshot,
                space: id,
                later,
            });
        }
        manifest.address_spaces.push(space);
        manifest.processes[index].address_space = Some(id);
    }
    manifest.mapped_files = mapped.files;
    holes::find(frozen, &mut context.saved, deadline)?;
    let processes = &frozen.processes;
    let mut read = |pid: i32, address: u64, buffer: &mut [u8]| -> Result<()> {
        let space = processes.iter().find(|p| p.pid == pid).and_then(|p| p.space.as_ref());
        let space = space.ok_or_else(|| Error::new(ErrorKind::Internal, format!("no memory of process {pid}")))?;
        match space.memory.read(address, buffer) {
            // Beyond the end of the object: never written.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                for (index, page) in buffer.chunks_mut(PAGE_SIZE).enumerate() {
                    let at = address + (index * PAGE_SIZE) as u64;
                    if space.memory.read(at, page).is_err() {
                        page.fill(0);
                    }
                }
                Ok(())
            }
            other => other.context(|| format!("read the memory of process {pid} at {address:#x}")),
        }
    };
    manifest.file_policies = std::mem::take(&mut context.policies).finish(&mut context.saved)?;
    manifest.saved_files = context.saved.write_contents(sink, &mut read)?;
    manifest.files = context.files;
    manifest.pipes = context.pipes;
    manifest.sockets = context.sockets;
    manifest.inet_sockets = context.inet_sockets;
    manifest.packet_sockets = context.packet_sockets;
    manifest.io_urings = context.io_urings;
    manifest.terminals = context.terminals;
    let sockets = HeldSockets {
        endings: context.endings,
        _deaf: context.deaf,
    };
    machine(frozen, manifest)?;
    Ok(sockets)
}

/// Sockets of a job that is about to end.
pub(super) struct HeldSockets {
    pub(super) endings: Vec<files::tcp::Ending>,
    /// After `endings`: closed connections need nobody's attention.
    pub(super) _deaf: Vec<files::tcp::Deaf>,
}

/// Adds who asked as a process that has ended and waits for its parent to notice.
pub(super) fn ended(requester: Requester, manifest: &mut Manifest) -> Result<()> {
    let pid = requester.pid;
    let what = || format!("look at process {pid}, which asks for the checkpoint");
    let proc = ProcDir::open(pid).context(what)?;
    let stat = proc.stat().context(what)?;
    let uid = proc.status().context(what)?.uids[0];
    let exit_code = i32::from(requester.exit_code);
    if let Some(parent) = manifest.processes.iter_mut().find(|p| p.pid == stat.ppid) {
        let signal_of = |info: &Bytes| info.0.first_chunk().map(|raw| i32::from_ne_bytes(*raw));
        if !parent
            .pending_signals
            .iter()
            .any(|info| signal_of(info) == Some(libc::SIGCHLD))
        {
            // siginfo_t of a child that has exited: signal, error, code, and from byte 16 on PID, user and exit code.
            let mut info = vec![0u8; 128];
            for (at, value) in [
                (0, libc::SIGCHLD),
                (8, libc::CLD_EXITED),
                (16, pid),
                (20, uid as i32),
                (24, exit_code),
            ] {
                info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            parent.pending_signals.push(Bytes(info));
        }
    }
    manifest.processes.push(Process {
        pid,
        ppid: stat.ppid,
        pgid: stat.pgrp,
        sid: stat.session,
        state: ProcessState::Zombie(exit_code << 8),
        ..Process::default()
    });
    Ok(())
}

/// What the restart machine must have in common with this one, and to whom the image belongs.
pub(super) fn machine(frozen: &Frozen, manifest: &mut Manifest) -> Result<()> {
    let owner = owner_of(manifest);
    let features = leading_thread(manifest).map(|thread| xstate_features(&thread.cpu.extended.0));
    let checkpoint = &mut manifest.checkpoint;
    (checkpoint.owner_uid, checkpoint.owner_gid) = owner.unwrap_or_default();
    checkpoint.xstate_features = features.unwrap_or_default();
    let Some(space) = frozen.processes.iter().find_map(|p| p.space.as_ref()) else {
        return Ok(());
    };
    for map in &space.maps {
        match map.kind() {
            MapKind::Vdso => {
                let mut code = vec![0u8; (map.end - map.start) as usize];
                space.memory.read(map.start, &mut code).context(|| "read the vdso")?;
                checkpoint.vdso_length += map.end - map.start;
                checkpoint.vdso_hash = Bytes(cpr_image::hash(&code).to_vec());
            }
            MapKind::Vvar | MapKind::VvarVclock => checkpoint.vdso_length += map.end - map.start,
            _ => {}
        }
    }
    Ok(())
}
