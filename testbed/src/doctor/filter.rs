//! What the kernel's packet filter must know for `iptables` and `nftables`, each tried: a kernel may lack any of them.

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
}

const fn part(name: &'static str, rules: &'static str, for_what: &'static str, module: &'static str) -> Part {
    Part { name, rules, for_what, module }
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
    part("-m sctp", "*filter\n-A INPUT -p sctp -m sctp --dport 1\nCOMMIT\n", "ports of SCTP", "xt_sctp"),
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
    ),
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
    part("-j LOG", "*filter\n-A INPUT -j LOG --log-prefix x\nCOMMIT\n", "policies that audit", "xt_LOG"),
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
    ),
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
    ),
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
    part("log", "add rule ip t c log prefix \"x\"\n", "policies that audit", "nft_log and nf_log_syslog"),
];

/// What is there before the rules of [`EXPRESSIONS`].
const HOOKS: &str = "add table ip t\nadd chain ip t a2\n\
                     add chain ip t c { type filter hook input priority 0; policy accept; }\n\
                     add chain ip t n { type nat hook output priority -100; policy accept; }\n\
                     add chain ip t p { type nat hook postrouting priority srcnat; policy accept; }\n";

/// Tries what `iptables` needs, for both families.
pub(super) fn iptables() -> Result<String, String> {
    in_a_namespace("iptables", |netns| {
        let try_of = |tool: &'static Tool| move |part: &Part| tool.load(netns, part.rules);
        lacks(MATCHES_AND_TARGETS, "IPv4", try_of(&RESTORE))?;
        lacks(MATCHES_AND_TARGETS, "IPv6", try_of(&RESTORE_V6))
    })
}

/// Tries what `nftables` needs.
pub(super) fn nftables() -> Result<String, String> {
    in_a_namespace("nftables", |netns| {
        lacks(EXPRESSIONS, "rules", |part| {
            // What is of the last one goes: nothing of it is in the way.
            let again = format!("add table ip t\ndelete table ip t\n{HOOKS}{}", part.rules);
            NFT.load(netns, &again)
        })
    })
}

/// Whether connections can be read and forgotten, as is done with those over UDP to endpoints that are no more.
pub(super) fn connections() -> Result<String, String> {
    let netns = Netns::create(super::throw_away("connections")).map_err(|error| error.to_string())?.guarded();
    netfilter::tracked(&netns).map(|_| "listed".to_owned()).map_err(|error| error.to_string())
}

fn in_a_namespace(
    which: &str,
    work: impl FnOnce(&Netns) -> Result<String, String>,
) -> Result<String, String> {
    let netns = Netns::create(super::throw_away(which)).map_err(|error| error.to_string())?.guarded();
    work(&netns)
}

/// Tries each part. What is there; or which are not, why that matters, and what knows them.
fn lacks(
    parts: &[Part],
    of: &str,
    attempt: impl Fn(&Part) -> Result<(), netfilter::Error>,
) -> Result<String, String> {
    let mut missing = Vec::new();
    for part in parts {
        match attempt(part) {
            Ok(()) => {}
            Err(netfilter::Error::Refused { .. }) => {
                let Part { name, for_what, module, .. } = part;
                missing.push(format!("{name} for {for_what} (module {module})"));
            }
            // Without the tool there is nothing to be tried.
            Err(error) => return Err(error.to_string()),
        }
    }
    if missing.is_empty() {
        return Ok(format!("all {} kinds of {of} loaded", parts.len()));
    }
    Err(format!("{of}: the kernel lacks {}", missing.join("; ")))
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
                let (netns, said) = ("n".to_owned(), "no".to_owned());
                Err(netfilter::Error::Refused { program: "iptables-restore", netns, said })
            }
            _ => Ok(()),
        };
        let why = lacks(MATCHES_AND_TARGETS, "IPv4", refused).expect_err("two are missing");
        let wanted = "IPv4: the kernel lacks -m recent for sessionAffinity (module xt_recent); \
                      -j LOG for policies that audit (module xt_LOG)";
        assert_eq!(why, wanted);
        let all = lacks(MATCHES_AND_TARGETS, "IPv4", |_| Ok(()));
        assert_eq!(all, Ok(format!("all {} kinds of IPv4 loaded", MATCHES_AND_TARGETS.len())));
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn this_machine_has_all_that_is_tried() {
        for (which, tried) in
            [("iptables", iptables()), ("nftables", nftables()), ("connections", connections())]
        {
            tried.unwrap_or_else(|why| panic!("{which}: {why}"));
        }
    }
}
