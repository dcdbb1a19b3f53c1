//! Limits that cannot be kept are refused before anything is made or ended.

use pythond_private_fs::cgroup::Delegated;
use pythond_protocol::limits::{SessionLimits, size_text};
use pythond_protocol::{ErrorCode, ErrorReply};
use rustix::process::Resource;

/// What a session needs beyond what its environment takes, in bytes.
const ROOM: u64 = 16 << 20;

/// Refuses limits that this machine, or this daemon, cannot keep.
pub(super) fn check(
    limits: SessionLimits,
    groups: &Result<Delegated, String>,
) -> Result<(), ErrorReply> {
    let root = rustix::process::geteuid().is_root();
    let grouped = [
        // For others than root the kernel counts all processes of the user.
        ("procs", limits.procs.filter(|_| root), "pids"),
        ("cpu_weight", limits.cpu_weight, "cpu"),
    ];
    for (name, asked, controller) in grouped {
        let why = match groups {
            _ if asked.is_none() => continue,
            Ok(groups) if groups.has(controller) => continue,
            Ok(_) => format!("the daemon's group has no controller `{controller}`"),
            Err(why) => why.clone(),
        };
        let message = format!("`{name}` cannot be limited without a control group: {why}");
        return Err(ErrorReply::new(ErrorCode::Limit, message).with_hint(
            "leave it out, or start the daemon where a control group is delegated to it, as its \
             systemd unit does",
        ));
    }
    let hard = [
        ("nofile", limits.nofile, Resource::Nofile),
        ("cpu_s", limits.cpu_s, Resource::Cpu),
        ("memory_bytes", limits.memory_bytes, Resource::Data),
    ];
    for (name, asked, resource) in hard {
        let most = rustix::process::getrlimit(resource).maximum;
        if let (Some(asked), Some(most)) = (asked, most)
            && asked > most
        {
            let message = format!("`{name}` cannot be {asked}: the daemon itself may have {most}");
            return Err(ErrorReply::new(ErrorCode::Limit, message));
        }
    }
    Ok(())
}

/// Refuses memory that is taken before the first cell. `zygote` is the process
/// that the session is a copy of.
pub(super) fn check_memory(limits: SessionLimits, zygote: i32) -> Result<(), ErrorReply> {
    let Some(most) = limits.memory_bytes else {
        return Ok(());
    };
    match data_bytes(zygote) {
        Some(taken) if taken + ROOM > most => Err(ErrorReply::new(
            ErrorCode::Limit,
            format!(
                "{} of memory are too little: this Python with its modules takes {}",
                size_text(most),
                size_text(taken)
            ),
        )
        .with_hint(format!("give it {} or more", size_text(taken + ROOM)))),
        _ => Ok(()),
    }
}

/// What counts against the limit of memory, of another process (proc(5)).
fn data_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmData:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
