//! What is written, and what is read: every kind of match and target, both families.

use super::*;

/// As `iptables-save` writes it: every line is one that version 1.8.9 wrote.
const SAVED: &str = r#"*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING ! -s 10.244.1.5/32 -i ppabc -m comment --comment "not an address of a/b" -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SEP - [0:0]
-A PREROUTING -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP
-A PREROUTING -m statistic --mode nth --every 3 --packet 1 -j KUBE-SEP
-A PREROUTING -m addrtype --dst-type LOCAL -j KUBE-SEP
-A PREROUTING -m addrtype ! --dst-type LOCAL -j KUBE-SEP
-A PREROUTING -m addrtype --src-type LOCAL -j KUBE-SEP
-A POSTROUTING -p tcp -j MASQUERADE --to-ports 32768-65535
-A POSTROUTING -j MASQUERADE --random-fully
-A POSTROUTING -j SNAT --to-source 10.0.0.1
-A KUBE-SEP -p tcp -m comment --comment "a/b:c" -m recent --set --name KUBE-SEP-X --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.1.2.3:80
-A KUBE-SEP -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-X --mask 255.255.255.255 --rsource -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-A - [0:0]
-A FORWARD -i eth0 -o pp+ -p tcp -m comment --comment "a b\"c" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED -m conntrack --ctdir REPLY -j ACCEPT
-A FORWARD ! -s 10.0.0.0/8 -d 10.96.0.10/32 ! -i pp+ -p tcp -m comment --comment "x/y:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -p udp -m comment --comment plain -m udp ! --sport 5:7 -j REJECT --reject-with icmp-host-unreachable
-A FORWARD -p udp -m multiport --dports 53,80:90 -j KUBE-A
-A FORWARD -p sctp -m sctp --dport 80 -j KUBE-A
-A FORWARD -g KUBE-A
-A FORWARD -j LOG --log-prefix "podpath audit: "
-A FORWARD -m mark --mark 0x10000/0x10000 -j RETURN
-A FORWARD -m mark ! --mark 0x4000/0x4000 -j MARK --set-xmark 0x10000/0x10000
-A FORWARD -p 47
COMMIT
"#;

fn read(text: &str) -> Ruleset {
    Ruleset::read("rules", text, Family::V4).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_is_read_is_written_as_it_was() {
    assert_eq!(read(SAVED).to_string(), SAVED);
}

#[test]
fn what_ip6tables_saves_is_read_and_written_as_it_was() {
    let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
        -A PREROUTING -d fd01::a/128 -p tcp -m recent --set --name X --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination [fd00::1]:80\n\
        -A POSTROUTING -j SNAT --to-source fd00::9\nCOMMIT\n\
        *filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
        -A FORWARD -p ipv6-icmp -j REJECT --reject-with icmp6-port-unreachable\nCOMMIT\n";
    let rules = Ruleset::read("rules", saved, Family::V6).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rules.to_string(), saved);
}

#[test]
fn counters_comments_and_other_words_for_the_same_make_no_difference() {
    let one = "# by hand\n*filter\n:FORWARD ACCEPT [12:345]\n:A - [1:2]\n\
        [5:400] -A FORWARD -p tcp -m tcp --sport 1 --dport 2:3 -m conntrack --ctstate ESTABLISHED,RELATED --ctdir REPLY -j A\n\
        [0:0] -A A --source 10.1.2.3/255.255.0.0 -j MARK --or-mark 0x4000\nCOMMIT\n# done\n";
    let other = "*filter\n:A -\n\
        -A FORWARD -p tcp -m tcp --sport 1 -m tcp --dport 2:3 -m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctdir REPLY -j A\n\
        -A A -s 10.1.0.0/16 -j MARK --set-xmark 16384/0x4000\nCOMMIT\n";
    assert_eq!(read(one), read(other));
}

#[test]
fn what_is_not_known_is_an_error_that_names_the_line() {
    let filter = |rule: &str| format!("*filter\n:A - [0:0]\n{rule}\nCOMMIT\n");
    for (text, line, word) in [
        ("*security\nCOMMIT\n".to_owned(), 1, "unknown table `security`"),
        (filter("-A FORWARD -m physdev --physdev-in eth0 -j DROP"), 3, "unknown match `physdev`"),
        (filter("-A FORWARD -m set --match-set x src -j DROP"), 3, "unknown match `set`"),
        (filter("-A FORWARD -j NFQUEUE --queue-num 1"), 3, "unknown option `--queue-num` of target NFQUEUE"),
        (filter("-A FORWARD -j CONNMARK"), 3, "unknown target `CONNMARK`"),
        (filter("-A FORWARD -p tcp -m tcp --tcp-flags SYN SYN -j DROP"), 3, "unknown option `--tcp-flags`"),
        (filter("-A FORWARD --dport 80 -j DROP"), 3, "`--dport` belongs to -m tcp or -m udp or -m sctp"),
        (filter("-A FORWARD ! -j DROP"), 3, "`!` cannot stand before -j"),
        (filter("-A FORWARD ! -m mark --mark 1 -j DROP"), 3, "`!` cannot stand before -m"),
        (filter("-A FORWARD -j LOG ! --log-prefix x"), 3, "`!` cannot stand before --log-prefix"),
        (filter("-A FORWARD -j DROP !"), 3, "`!` stands before nothing"),
        (filter("-A FORWARD -m tcp --dport 80 -j DROP"), 3, "-m tcp needs -p tcp"),
        (filter("-A FORWARD -p tcp -m udp --dport 80 -j DROP"), 3, "-m udp needs -p udp"),
        (filter("-A FORWARD ! -p tcp --dport 80 -j DROP"), 3, "ports need -p tcp"),
        (filter("-A FORWARD -m multiport --dports 80 -j DROP"), 3, "ports need -p tcp"),
        (filter("-A FORWARD -j DNAT --to-destination 1.2.3.4"), 3, "target DNAT may be only in table nat"),
        (filter("-A FORWARD -j MASQUERADE"), 3, "target MASQUERADE may be only in table nat"),
        (
            "*mangle\n:A -\n-A A -j REJECT\nCOMMIT\n".to_owned(),
            3,
            "target REJECT may be only in table filter",
        ),
        ("*nat\n:A -\n-A A -j DROP\nCOMMIT\n".to_owned(), 3, "target DROP may be not in table nat"),
        (filter("-A FORWARD -m addrtype --dst-type BROADCAST -j DROP"), 3, "unknown value `BROADCAST`"),
        (filter("-A FORWARD -m conntrack --ctstate OLD -j DROP"), 3, "unknown state `OLD`"),
        (filter("-A FORWARD -s fd00::1 -j DROP"), 3, "fd00::1 is not IPv4"),
        (filter("-A FORWARD -s 1.2.3.4 -s 1.2.3.5 -j DROP"), 3, "-s is there twice"),
        (filter("-A B -j DROP"), 3, "no chain B"),
        (filter("-I FORWARD -j DROP"), 3, "expected `-A CHAIN"),
        (filter("-A A -j DNAT"), 3, "target DNAT lacks --to-destination"),
        (filter("-A A -m statistic --mode nth --every 2 --packet 2"), 3, "-m statistic takes"),
        (filter("-A A -m comment --comment \"no end -j DROP"), 3, "a quotation has no end"),
        (filter("-A A -j REJECT --reject-with icmp6-no-route"), 3, "unknown answer `icmp6-no-route`"),
        ("*filter\n-A FORWARD -j DROP\n".to_owned(), 2, "table filter has no end"),
        ("-A FORWARD -j DROP\n".to_owned(), 1, "is in no table"),
    ] {
        match Ruleset::read("file.rules", &text, Family::V4) {
            Err(error @ Error::Line { line: at, .. }) => {
                let message = error.to_string();
                assert!(message.contains("file.rules:") && message.contains(word), "{message}");
                assert_eq!(at, line, "{message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_comment_that_is_too_long_for_the_kernel_is_cut_at_a_letter() {
    let rule = Rule::then(Then::Accept).comment("ä".repeat(200));
    assert_eq!(rule.comment.len(), 254);
}
