//! What this machine can and cannot do: each requirement tried, not guessed.

pub mod filter;

use dataplane::wire::Mac;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;
use serde::Serialize;
use userspace::engine::kernel::object::OBJECT;
use userspace::engine::kernel::{bpf, cgroup};

use self::filter::Share;
use crate::link::{End, Links, Vxlan, pair};
use crate::netns::Netns;

/// The first kernel with tcx, by which programs are attached (Linux 6.6).
const OLDEST_KERNEL: (u32, u32) = (6, 6);
/// Where programs and maps are pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// A requirement, and whether it is met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is required.
    pub requirement: &'static str,
    /// The values of `--dataplane` that need it; empty for what is only good to have, or only some clusters need.
    pub needed_for: &'static [&'static str],
    /// Whether it is there.
    pub found: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it, in one line; `None` if it is there.
    pub remedy: Option<&'static str>,
}

/// Every dataplane that lives in network namespaces.
const LIVE: &[&str] = &["ebpf", "chains", "iptables", "nftables", "routed"];
/// The one that is programs in the kernel.
const EBPF: &[&str] = &["ebpf"];
/// Those that are the kernel's own packet filter, and its tunnel.
const NETFILTER: &[&str] = &["iptables", "nftables"];

/// Tries everything that a dataplane of ours may need. Leaves nothing behind.
pub fn examine() -> Vec<Finding> {
    let mut all = without_filter();
    all.extend(packet_filter());
    all
}

/// Of [`examine`] all but what is asked of the kernel's packet filter, which takes its tools many times.
pub fn without_filter() -> Vec<Finding> {
    vec![
        finding("root", LIVE, root(), "run it as root: sudo podpath …"),
        finding("Linux 6.6 or newer", EBPF, kernel(), "boot a kernel from 6.6 on: older ones have no tcx"),
        finding("network namespaces", LIVE, namespace(), "allow CAP_SYS_ADMIN: docker run --privileged"),
        finding("veth pairs", LIVE, veth(), "load the module: modprobe veth"),
        finding("eBPF object", EBPF, object(), "build it in: make setup, then build again"),
        finding(
            "bpf system call",
            EBPF,
            bpf(),
            "allow CAP_BPF and the bpf system call: docker run --privileged",
        ),
        finding("bpffs at /sys/fs/bpf", EBPF, bpffs(), "mount it: mount -t bpf bpf /sys/fs/bpf"),
        finding(
            "sockets translated",
            &[],
            sockets(),
            "mount cgroup v2: mount -t cgroup2 none /sys/fs/cgroup/unified; without it leave socketTranslation off",
        ),
        finding("SCTP", &[], sctp(), "load the module: modprobe sctp; without it no pod listens over SCTP"),
    ]
}

/// What of `iptables` only some clusters need.
pub const IPTABLES_OF_SOME: &str = "iptables, what some clusters need";
/// The same of `nftables`.
pub const NFTABLES_OF_SOME: &str = "nftables, what some clusters need";

fn packet_filter() -> [Finding; 6] {
    [
        finding("VXLAN device", NETFILTER, vxlan(), "load the module: modprobe vxlan"),
        finding(
            "iptables",
            &["iptables"],
            filter::iptables(Share::Every),
            "install it: apt-get install iptables, or make setup; load the modules that are named: modprobe xt_…",
        ),
        finding(
            IPTABLES_OF_SOME,
            &[],
            filter::iptables(Share::Some),
            "load the modules that are named: modprobe xt_…; without them clusters with what they are for do not come up",
        ),
        finding(
            "nftables",
            &["nftables"],
            filter::nftables(Share::Every),
            "install it: apt-get install nftables, or make setup; load the modules that are named: modprobe nft_…",
        ),
        finding(
            NFTABLES_OF_SOME,
            &[],
            filter::nftables(Share::Some),
            "load the modules that are named: modprobe nft_…; without them clusters with what they are for do not come up",
        ),
        finding(
            "tracked connections listed",
            NETFILTER,
            filter::connections(),
            "load the module: modprobe nf_conntrack_netlink; without it clients over UDP go on to endpoints that are gone",
        ),
    ]
}

/// Whether everything is there that `dataplane` needs.
pub fn works(findings: &[Finding], dataplane: &str) -> bool {
    findings.iter().all(|one| one.found || !one.needed_for.contains(&dataplane))
}

fn finding(
    requirement: &'static str,
    needed_for: &'static [&'static str],
    seen: Result<String, String>,
    remedy: &'static str,
) -> Finding {
    let found = seen.is_ok();
    let detail = seen.unwrap_or_else(|why| why);
    Finding { requirement, needed_for, found, detail, remedy: (!found).then_some(remedy) }
}

fn root() -> Result<String, String> {
    let user = nix::unistd::geteuid();
    if user.is_root() { Ok("user 0".to_owned()) } else { Err(format!("user {user}")) }
}

fn kernel() -> Result<String, String> {
    let release = uname().map_err(|errno| errno.to_string())?.release().to_string_lossy().into_owned();
    let new_enough = version(&release).is_some_and(|version| version >= OLDEST_KERNEL);
    if new_enough { Ok(release) } else { Err(release) }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn namespace() -> Result<String, String> {
    let made = Netns::create(throw_away("a")).map_err(|error| error.to_string())?;
    drop(made.guarded());
    Ok("made one".to_owned())
}

fn veth() -> Result<String, String> {
    let make = |side| Netns::create(throw_away(side)).map(Netns::guarded).map_err(|error| error.to_string());
    let (near, far) = (make("a")?, make("b")?);
    let end = |netns| End { netns, name: "eth0", mac: None, mtu: 1500, gso_max_size: 65_535 };
    pair(&end(&near), &end(&far)).map_err(|error| error.to_string())?;
    Ok("made one".to_owned())
}

/// Makes the kernel's tunnel device over a veth.
fn vxlan() -> Result<String, String> {
    let make = |side| Netns::create(throw_away(side)).map(Netns::guarded).map_err(|error| error.to_string());
    let (near, far) = (make("c")?, make("d")?);
    let end = |netns| End { netns, name: "eth0", mac: None, mtu: 1500, gso_max_size: 65_535 };
    pair(&end(&near), &end(&far)).map_err(|error| error.to_string())?;
    let tunnel = Vxlan {
        name: "vxlan0",
        over: "eth0",
        v6: false,
        vni: 1,
        port: 8472,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        gso_max_size: 65_535,
    };
    Links::open(&near).and_then(|mut links| links.vxlan(&tunnel)).map_err(|error| error.to_string())?;
    Ok("made one".to_owned())
}

fn throw_away(side: &str) -> String {
    format!("podpath-test-{}-doctor-{side}", std::process::id())
}

fn bpf() -> Result<String, String> {
    bpf::try_out().map_err(|error| error.to_string())?;
    Ok("made a map".to_owned())
}

/// Whether the build step made the programs; why not, in the first line of its report.
fn object() -> Result<String, String> {
    match OBJECT {
        Ok(bytes) => Ok(format!("{} bytes, built in", bytes.len())),
        Err(why) => Err(why.lines().next().unwrap_or(why).to_owned()),
    }
}

fn bpffs() -> Result<String, String> {
    let found = statfs(BPFFS).map_err(|errno| errno.desc().to_owned())?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        Ok("mounted".to_owned())
    } else {
        Err("not mounted".to_owned())
    }
}

/// Hooks a program that lets everything pass into the root of the control groups, and takes it off again; and asks
/// for the cookie of this network namespace.
fn sockets() -> Result<String, String> {
    let root = cgroup::try_out().map_err(|error| error.to_string())?;
    Ok(format!("by programs of {}", root.display()))
}

fn sctp() -> Result<String, String> {
    let spoken = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp);
    spoken.map(|_| "spoken".to_owned()).map_err(|errno| errno.desc().to_owned())
}

/// Whether the kernel speaks SCTP, so that pods can listen over it.
pub fn speaks_sctp() -> bool {
    sctp().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_compared_by_its_first_two_numbers() {
        for (release, expected) in [
            ("6.18.44-fc", Some((6, 18))),
            ("6.6.0", Some((6, 6))),
            ("5.15.0-91-generic", Some((5, 15))),
            ("7.0-rc1", Some((7, 0))),
            ("next", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(version("6.10.1") >= Some(OLDEST_KERNEL));
    }

    #[test]
    fn a_dataplane_works_if_nothing_that_it_needs_is_missing() {
        let missing = |needed_for| Finding {
            requirement: "x",
            needed_for,
            found: false,
            detail: String::new(),
            remedy: None,
        };
        assert!(works(&[missing(&[]), missing(&["routed"])], "ebpf"));
        assert!(!works(&[missing(EBPF)], "ebpf"));
        assert!(works(&[missing(EBPF)], "emulator"));
    }
}
