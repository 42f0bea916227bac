//! What the kernel's packet filter must know for `iptables` and `nftables`, each tried: a kernel may lack any of them.

use userspace::model::Cluster;

use crate::dataplane::Name;
use crate::dataplane::netfilter::{self, NFT, RESTORE, RESTORE_V6, Tool};
use crate::netns::Netns;

/// Something that rules are made of.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// Rules that have it, and no more than they need: lines for the tool.
    pub rules: &'static str,
    /// What the dataplanes need it for.
    pub for_what: &'static str,
    /// The module that knows it.
    pub module: &'static str,
    /// What rules say that have it, where only some clusters' do; `None`: every cluster's do.
    pub told_by: Option<&'static str>,
}

impl Part {
    /// The same, of rules that say this alone.
    const fn told_by(self, words: &'static str) -> Self {
        Self { told_by: Some(words), ..self }
    }

    /// Whether rules have it.
    fn is_in(&self, rules: &str) -> bool {
        self.told_by.is_none_or(|words| rules.contains(words))
    }
}

const fn part(name: &'static str, rules: &'static str, for_what: &'static str, module: &'static str) -> Part {
    Part { name, rules, for_what, module, told_by: None }
}

/// The matches and targets of `iptables`' rules, and what they are without addresses.
pub const MATCHES_AND_TARGETS: &[Part] = &[
    part(
        "tables",
        "*raw\n:A - [0:0]\n-A PREROUTING -j A\nCOMMIT\n*nat\n:A - [0:0]\n-A PREROUTING -i lo -g A\nCOMMIT\n\
          *filter\n:A - [0:0]\n-A FORWARD -o lo -j A\n-A A -j DROP\n-A A -j RETURN\n-A A -j ACCEPT\nCOMMIT\n",
        "all rules",
        "iptable_raw, iptable_nat and iptable_filter, or nft_compat",
    ),
    part(
        "-m comment",
        "*filter\n-A INPUT -m comment --comment x\nCOMMIT\n",
        "saying whom a rule is for",
        "xt_comment",
    ),
    part(
        "-m tcp, -m udp",
        "*filter\n-A INPUT -p tcp -m tcp --dport 1:2\n-A INPUT -p udp -m udp --dport 1\nCOMMIT\n",
        "ports",
        "xt_tcpudp",
    ),
    part("-m sctp", "*filter\n-A INPUT -p sctp -m sctp --dport 1\nCOMMIT\n", "ports of SCTP", "xt_sctp")
        .told_by("-m sctp"),
    part(
        "-m conntrack",
        "*filter\n-A INPUT -m conntrack --ctstate NEW -m conntrack --ctdir REPLY\nCOMMIT\n",
        "letting answers pass",
        "xt_conntrack",
    ),
    part(
        "-m addrtype",
        "*filter\n-A INPUT -m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL\nCOMMIT\n",
        "node ports",
        "xt_addrtype",
    ),
    part(
        "-m mark",
        "*filter\n-A INPUT -m mark ! --mark 0x1/0x1\nCOMMIT\n",
        "remembering what a rule said",
        "xt_mark",
    ),
    part(
        "-m statistic",
        "*nat\n-A OUTPUT -m statistic --mode random --probability 0.5\nCOMMIT\n",
        "choosing an endpoint",
        "xt_statistic",
    ),
    part(
        "-m recent",
        "*nat\n-A OUTPUT -m recent --set --name x --rsource\n\
          -A OUTPUT -m recent --rcheck --seconds 9 --reap --name x --rsource\nCOMMIT\n",
        "sessionAffinity",
        "xt_recent",
    )
    .told_by("-m recent"),
    part(
        "-j MARK",
        "*mangle\n-A OUTPUT -j MARK --set-xmark 0x1/0x1\nCOMMIT\n",
        "remembering what a rule said",
        "xt_mark",
    ),
    part("-j DNAT", "*nat\n-A OUTPUT -p tcp -j DNAT --to-destination :80\nCOMMIT\n", "Services", "xt_nat"),
    part(
        "-j MASQUERADE",
        "*nat\n-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1-2 --random-fully\nCOMMIT\n",
        "going into the world",
        "xt_MASQUERADE",
    ),
    part(
        "-j REJECT",
        "*filter\n-A INPUT -j REJECT\nCOMMIT\n",
        "Services without endpoints",
        "ipt_REJECT and ip6t_REJECT",
    ),
    part("-j LOG", "*filter\n-A INPUT -j LOG --log-prefix x\nCOMMIT\n", "policies that audit", "xt_LOG")
        .told_by("-j LOG"),
];

/// The expressions of `nftables`' rules. Each is a rule of a chain of its own hook.
pub const EXPRESSIONS: &[Part] = &[
    part(
        "maps",
        "add map ip t m { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
          add map ip t i { type ifname : verdict; }\nadd set ip t s { type ifname . ipv4_addr; }\n\
          add set ip t r { type ipv4_addr; flags interval; }\nadd chain ip t a\n\
          add rule ip t a ip daddr . meta l4proto . th dport vmap @m\nadd rule ip t a oifname vmap @i\n\
          add rule ip t a iifname . ip saddr != @s drop\nadd rule ip t a ip daddr @r return\n\
          add rule ip t a udp dport 1 meta l4proto { tcp, udp, sctp } accept\nadd rule ip t a jump a2\n\
          add rule ip t a goto a2\n",
        "all rules",
        "nf_tables",
    ),
    part(
        "hooks",
        "add chain ip t f { type filter hook forward priority filter; policy accept; }\n\
         add chain ip t r { type filter hook prerouting priority raw; policy accept; }\n\
         add chain ip t d { type nat hook prerouting priority -100; policy accept; }\n",
        "all rules",
        "nf_tables and nft_chain_nat",
    ),
    part(
        "IPv6",
        "add table ip6 t\nadd chain ip6 t c { type filter hook input priority 0; policy accept; }\n\
         add rule ip6 t c icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n",
        "clusters with IPv6",
        "nf_tables, built with IPv6",
    )
    .told_by(" ip6 "),
    part(
        "ct",
        "add rule ip t c ct state new ct state invalid drop\nadd rule ip t c ct direction reply ct state established,related accept\n",
        "letting answers pass",
        "nft_ct",
    ),
    part(
        "numgen",
        "add rule ip t c numgen random mod 2 vmap { 0 : accept, 1 : accept }\n",
        "choosing an endpoint",
        "nft_numgen",
    ),
    part(
        "dynamic sets",
        "add set ip t d { type ipv4_addr; flags dynamic,timeout; timeout 9s; size 9; }\n\
          add rule ip t c update @d { ip saddr }\n",
        "sessionAffinity",
        "nf_tables",
    )
    .told_by("flags dynamic"),
    part(
        "meta mark",
        "add rule ip t c meta mark set meta mark | 1\nadd rule ip t c meta mark set meta mark ^ 1\n\
          add rule ip t c meta mark & 1 == 0 return\n",
        "remembering what a rule said",
        "nf_tables",
    ),
    part("dnat", "add rule ip t n meta l4proto tcp dnat to 10.0.0.1:80\n", "Services", "nft_nat"),
    part(
        "masquerade",
        "add rule ip t p masquerade fully-random\n\
          add rule ip t p meta l4proto tcp masquerade to :1-2 fully-random\n",
        "going into the world",
        "nft_masq",
    ),
    part("reject", "add rule ip t c reject\n", "Services without endpoints", "nft_reject_ipv4"),
    part("log", "add rule ip t c log prefix \"x\"\n", "policies that audit", "nft_log and nf_log_syslog")
        .told_by(" log prefix "),
];

/// What is there before the rules of [`EXPRESSIONS`].
const HOOKS: &str = "add table ip t\nadd chain ip t a2\n\
                     add chain ip t c { type filter hook input priority 0; policy accept; }\n\
                     add chain ip t n { type nat hook output priority -100; policy accept; }\n\
                     add chain ip t p { type nat hook postrouting priority srcnat; policy accept; }\n";

/// Why not all parts are there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    /// The kernel lacks some: which, why that matters, and what knows them.
    Lacks(String),
    /// They could not be tried.
    Untried(String),
}

impl Missing {
    fn untried(why: impl ToString) -> Self {
        Self::Untried(why.to_string())
    }

    fn text(self) -> String {
        let (Self::Lacks(why) | Self::Untried(why)) = self;
        why
    }
}

/// Which parts are tried: those that every cluster needs, or those that only some need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Every,
    Some,
}

/// Tries what `iptables` needs. IPv6 is what some clusters need.
pub(super) fn iptables(share: Share) -> Result<String, String> {
    let v4 = (RESTORE, MATCHES_AND_TARGETS);
    let seen = match share {
        Share::Every => known(v4, "IPv4", |part| part.told_by.is_none()),
        Share::Some => known(v4, "IPv4", |part| part.told_by.is_some()).and_then(|seen| {
            let more = known((RESTORE_V6, MATCHES_AND_TARGETS), "IPv6", |_| true)?;
            Ok(format!("{seen}, {more}"))
        }),
    };
    seen.map_err(Missing::text)
}

/// Tries what `nftables` needs.
pub(super) fn nftables(share: Share) -> Result<String, String> {
    let seen = known((NFT, EXPRESSIONS), "rules", |part| part.told_by.is_none() == (share == Share::Every));
    seen.map_err(Missing::text)
}

/// Tries what the rules of a cluster have, on any of its nodes, beyond what every cluster's do.
///
/// # Errors
/// What the kernel lacks of it, and what for; or why it could not be tried.
pub fn suits(dataplane: Name, cluster: &Cluster) -> Result<(), String> {
    let mut all: Vec<(Tool, String)> = Vec::new();
    for node in &cluster.nodes {
        let told = netfilter::change(dataplane, None, cluster, &node.name).map_err(|why| why.to_string())?;
        for (tool, rules) in told {
            match all.iter_mut().find(|(known, _)| *known == tool) {
                Some((_, text)) => text.push_str(&rules),
                None => all.push((tool, rules)),
            }
        }
    }
    all.iter().try_for_each(|(tool, rules)| known_of(tool, rules).map(|_| ()).map_err(Missing::text))
}

/// What the kernel lacks of what these rules have, if it lacks something.
pub fn lacking(tool: &Tool, rules: &str) -> Option<String> {
    match known_of(tool, rules) {
        Err(Missing::Lacks(why)) => Some(why),
        Ok(_) | Err(Missing::Untried(_)) => None,
    }
}

/// Tries what these rules have.
fn known_of(tool: &Tool, rules: &str) -> Result<String, Missing> {
    let (parts, of) = match *tool {
        RESTORE => (MATCHES_AND_TARGETS, "IPv4"),
        RESTORE_V6 => (MATCHES_AND_TARGETS, "IPv6"),
        _ => (EXPRESSIONS, "rules"),
    };
    known((*tool, parts), of, |part| part.is_in(rules))
}

/// Tries those parts for a tool that are chosen.
fn known(
    (tool, parts): (Tool, &[Part]),
    of: &str,
    chosen: impl Fn(&Part) -> bool,
) -> Result<String, Missing> {
    let netns = Netns::create(super::throw_away(tool.program)).map_err(Missing::untried)?.guarded();
    let chosen: Vec<&Part> = parts.iter().filter(|part| chosen(part)).collect();
    lacks(&chosen, of, |part| {
        if tool == NFT {
            // What is of the last one goes: nothing of it is in the way.
            let again = format!("add table ip t\ndelete table ip t\n{HOOKS}{}", part.rules);
            return tool.load(&netns, &again);
        }
        tool.load(&netns, part.rules)
    })
}

/// Whether connections can be read and forgotten, as is done with those over UDP to endpoints that are no more.
pub(super) fn connections() -> Result<String, String> {
    let netns = Netns::create(super::throw_away("connections")).map_err(|error| error.to_string())?.guarded();
    netfilter::tracked(&netns).map(|_| "listed".to_owned()).map_err(|error| error.to_string())
}

/// Tries each part. What is there; or which are not, why that matters, and what knows them.
fn lacks(
    parts: &[&Part],
    of: &str,
    attempt: impl Fn(&Part) -> Result<(), netfilter::Error>,
) -> Result<String, Missing> {
    let mut missing = Vec::new();
    for part in parts {
        match attempt(part) {
            Ok(()) => {}
            Err(netfilter::Error::Refused { said, .. }) if is_unknown(&said) => {
                let Part { name, for_what, module, .. } = part;
                missing.push(format!("{name} for {for_what} (module {module})"));
            }
            // That says nothing of what the kernel knows.
            Err(netfilter::Error::Refused { program, said, .. }) => {
                return Err(Missing::Untried(format!(
                    "cannot try {} of {of}: {program} says: {said}",
                    part.name
                )));
            }
            // Without the tool there is nothing to be tried.
            Err(error) => return Err(Missing::untried(error)),
        }
    }
    if missing.is_empty() {
        return Ok(format!("all {} kinds of {of} loaded", parts.len()));
    }
    Err(Missing::Lacks(format!("{of}: the kernel lacks {}", missing.join("; "))))
}

/// Whether a tool says that the kernel, or the tool itself, does not know what it was told: in the words of ENOENT and
/// EOPNOTSUPP, or in those of its own.
fn is_unknown(said: &str) -> bool {
    const WORDS: [&str; 5] = [
        "No such file or directory",
        "not supported",
        "No chain/target/match by that name",
        "missing kernel module",
        "Table does not exist",
    ];
    // The older `iptables-restore` says no more than that of what the kernel refuses.
    let bare = said.starts_with("iptables-restore: line") || said.starts_with("ip6tables-restore: line");
    WORDS.iter().any(|words| said.contains(words)) || bare && said.ends_with(" failed")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::case::{self, Case};
    use crate::dataplane::Name;

    /// What the tools of a dataplane are told for every node of every case.
    fn told(dataplane: Name) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let mut all = String::new();
        for path in case::all(&folder).expect("they can be listed") {
            let cluster = Case::read(&path).unwrap_or_else(|error| panic!("{error}")).cluster;
            if netfilter::check(dataplane, &cluster).is_err() {
                continue;
            }
            for node in &cluster.nodes {
                let told = netfilter::change(dataplane, None, &cluster, &node.name);
                let told = told.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                all.extend(told.into_iter().map(|(_, rules)| rules));
            }
        }
        all
    }

    fn tried(parts: &[Part]) -> String {
        parts.iter().map(|part| part.rules).collect::<String>() + HOOKS
    }

    /// Matches, targets and their options in rules as `iptables-save` writes them; to which chains they lead is left out.
    fn matches_and_targets(rules: &str) -> BTreeSet<String> {
        let chains: BTreeSet<&str> =
            rules.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
        let own = rules.lines().filter(|line| line.starts_with("-A ")).flat_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let named = words.windows(2).filter(|pair| ["-m", "-j", "-g"].contains(&pair[0]));
            let named: Vec<String> =
                named.filter(|pair| !chains.contains(pair[1])).map(|pair| pair.join(" ")).collect();
            let options = words.into_iter().filter(|word| word.starts_with("--")).map(str::to_owned);
            named.into_iter().chain(options).collect::<Vec<_>>()
        });
        own.collect()
    }

    /// The words of transactions that nobody has chosen: neither names nor numbers, and IPv6's as IPv4's.
    fn expressions(rules: &str) -> BTreeSet<String> {
        let mut words = BTreeSet::new();
        for line in rules.lines() {
            let mut before = "";
            // What is done to what of which table has names.
            for word in line.split([' ', ';', ',']).filter(|word| !word.is_empty()).skip(5) {
                let is_word =
                    word.chars().all(|letter| letter.is_ascii_lowercase() || "_46".contains(letter));
                let is_name = ["jump", "goto"].contains(&before) || word.parse::<u32>().is_ok();
                if is_word && !is_name {
                    words.insert(word.replace("ip6", "ip").replace("ipv6", "ipv4"));
                }
                before = word;
            }
        }
        words
    }

    #[test]
    fn all_that_rules_of_iptables_are_made_of_is_tried() {
        let (needed, tried) = (matches_and_targets(&told(Name::Iptables)), tried(MATCHES_AND_TARGETS));
        assert!(needed.contains("-m statistic") && needed.contains("-j REJECT"), "{needed:?}");
        let words: BTreeSet<String> = matches_and_targets(&tried);
        // Which packet an error is does not matter to whether there are errors.
        let others: Vec<_> = needed.difference(&words).filter(|it| *it != "--reject-with").collect();
        assert!(others.iter().all(|it| *it == "--mask"), "not tried: {others:?}");
    }

    #[test]
    fn all_that_rules_of_nftables_are_made_of_is_tried() {
        let needed = expressions(&told(Name::Nftables));
        assert!(needed.contains("numgen") && needed.contains("masquerade"), "{needed:?}");
        let words = expressions(&tried(EXPRESSIONS));
        let others: Vec<_> = needed.difference(&words).collect();
        assert!(others.is_empty(), "not tried: {others:?}");
    }

    #[test]
    fn what_a_kernel_lacks_is_named_with_what_for_and_the_module_that_knows_it() {
        let refused = |part: &Part| match part.name {
            "-m recent" | "-j LOG" => {
                let (netns, said) = ("n".to_owned(), "Extension: No such file or directory".to_owned());
                Err(netfilter::Error::Refused { program: "iptables-restore", netns, said })
            }
            _ => Ok(()),
        };
        let parts: Vec<&Part> = MATCHES_AND_TARGETS.iter().collect();
        let why = lacks(&parts, "IPv4", refused).expect_err("two are missing");
        let wanted = "IPv4: the kernel lacks -m recent for sessionAffinity (module xt_recent); \
                      -j LOG for policies that audit (module xt_LOG)";
        assert_eq!(why, Missing::Lacks(wanted.to_owned()));
        let all = lacks(&parts, "IPv4", |_| Ok(()));
        assert_eq!(all, Ok(format!("all {} kinds of IPv4 loaded", MATCHES_AND_TARGETS.len())));
    }

    #[test]
    fn a_refusal_for_another_reason_says_nothing_of_what_the_kernel_knows() {
        let refused = |said: &'static str| {
            let parts: Vec<&Part> = MATCHES_AND_TARGETS.iter().collect();
            let refusal = |_: &Part| {
                let (netns, said) = ("n".to_owned(), said.to_owned());
                Err(netfilter::Error::Refused { program: "iptables-restore", netns, said })
            };
            lacks(&parts, "IPv4", refusal).expect_err("it is refused")
        };
        for said in [
            "iptables-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
            "/dev/stdin:1:1-15: Error: Could not process rule: Operation not permitted",
            "Another app is currently holding the xtables lock",
            "Error: syntax error, unexpected newline",
        ] {
            let wanted = format!("cannot try tables of IPv4: iptables-restore says: {said}");
            assert_eq!(refused(said), Missing::Untried(wanted));
        }
        for said in [
            "iptables-restore: line 3 failed",
            "iptables-restore v1.8.9 (nf_tables): line 2: RULE_APPEND failed (No such file or directory): rule in chain INPUT",
            "Error: Could not process rule: Operation not supported",
        ] {
            let why = refused(said);
            assert!(
                matches!(&why, Missing::Lacks(why) if why.contains("tables for all rules")),
                "{said}: {why:?}"
            );
        }
    }

    /// The names of parts that only some clusters need, and that these rules have.
    fn rare(parts: &[Part], rules: &str) -> Vec<&'static str> {
        let rare = parts.iter().filter(|part| part.told_by.is_some() && part.is_in(rules));
        rare.map(|part| part.name).collect()
    }

    #[test]
    fn what_only_some_clusters_need_is_in_their_rules_alone() {
        let plain =
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: x}]}}";
        let plain = userspace::model::load_text("plain", plain).expect("it is sound");
        for (dataplane, parts, count) in
            [(Name::Iptables, MATCHES_AND_TARGETS, 3), (Name::Nftables, EXPRESSIONS, 3)]
        {
            let all = rare(parts, &told(dataplane));
            assert_eq!(all.len(), count, "{dataplane}: {all:?}");
            assert_eq!(rare(parts, &tried(parts)), all, "what is tried says what it is told by");
            for node in &plain.nodes {
                let rules = netfilter::change(dataplane, None, &plain, &node.name).expect("it is a node");
                assert!(!rules.is_empty());
                for (_, rules) in rules {
                    assert_eq!(rare(parts, &rules), Vec::<&str>::new(), "{dataplane}");
                }
            }
        }
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn this_machine_has_all_that_is_tried() {
        let shares = [Share::Every, Share::Some];
        let tools = shares
            .into_iter()
            .flat_map(|share| [("iptables", iptables(share)), ("nftables", nftables(share))]);
        for (which, tried) in tools.chain([("connections", connections())]) {
            tried.unwrap_or_else(|why| panic!("{which}: {why}"));
        }
    }
}
