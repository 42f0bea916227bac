//! ip-masq-agent's configuration: what leaves with a pod's own address.

use userspace::model::Objects;

use crate::{cluster, fault, pod_text, testbed, wrong};

/// A ConfigMap with this text under a key.
fn config_map(name: &str, key: &str, text: &str) -> String {
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: kube-system}}\ndata:\n  {key}: |-\n{indented}"
    )
}

fn native(text: &str) -> Vec<String> {
    cluster(text).settings.non_masquerade_cidrs.iter().map(ToString::to_string).collect()
}

#[test]
fn the_agents_config_map_is_read_in_yaml_or_json_under_any_key() {
    let yaml = config_map(
        "ip-masq-agent",
        "config",
        "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - fd00::/8\nresyncInterval: 60s",
    );
    assert_eq!(native(&(pod_text("a", "", "") + &yaml)), ["10.0.0.0/8", "fd00::/8"]);
    let json = config_map(
        "azure-ip-masq-agent-config-reconciled",
        "ip-masq-agent-reconciled",
        r#"{"nonMasqueradeCIDRs": ["192.168.0.7/16"], "masqLinkLocal": true}"#,
    );
    assert_eq!(native(&json), ["192.168.0.0/16"]);
}

#[test]
fn its_ranges_join_those_of_the_testbed_each_once() {
    let text = testbed("nonMasqueradeCIDRs: [10.0.0.0/8]")
        + &config_map("ip-masq-agent", "config", "nonMasqueradeCIDRs: [172.16.0.0/12, 10.0.0.0/8]")
        + &config_map("azure-ip-masq-agent-config", "more", "nonMasqueradeCIDRs: [192.168.0.0/16]");
    assert_eq!(native(&text), ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
}

#[test]
fn the_configuration_file_by_itself_is_read_too() {
    let file = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\nmasqLinkLocal: false\nmasqLinkLocalIPv6: false\nresyncInterval: 60s\n";
    assert_eq!(native(&format!("{}---\n{file}", pod_text("a", "", ""))), ["10.0.0.0/8"]);
    let objects = Objects::parse("config", file).expect("it is an object by itself");
    let keys: Vec<String> = objects.iter().map(|entry| entry.object.key().to_string()).collect();
    assert_eq!(keys, ["ConfigMap kube-system/ip-masq-agent"]);
}

#[test]
fn notes_say_what_was_read_and_what_has_no_meaning_here() {
    let text = config_map("ip-masq-agent", "config", "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true");
    let notes = cluster(&text).notes;
    assert!(
        notes.contains(
            &"ConfigMap kube-system/ip-masq-agent says not to masquerade what goes to 10.0.0.0/8.".to_owned()
        ),
        "{notes:?}"
    );
    assert!(
        notes.contains(&"masqLinkLocal of ConfigMap kube-system/ip-masq-agent changes nothing: what goes to link-local addresses never leaves a node here, masqueraded or not.".to_owned()),
        "{notes:?}"
    );
}

#[test]
fn an_empty_configuration_says_nothing() {
    let text = config_map("ip-masq-agent", "config", "# nothing yet");
    assert!(native(&text).is_empty());
}

#[test]
fn other_config_maps_are_skipped() {
    let text = pod_text("a", "", "") + &config_map("ip-masq", "config", "nonMasqueradeCIDRs: [10.0.0.0/8]");
    let cluster = cluster(&text);
    assert!(cluster.settings.non_masquerade_cidrs.is_empty());
    assert!(cluster.notes[0].contains("ConfigMap (1)"));
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let refused = |text: &str| {
        let fault = fault(&config_map("ip-masq-agent", "config", text));
        fault.strip_prefix("ConfigMap kube-system/ip-masq-agent: ").expect("the object is named").to_owned()
    };
    assert!(
        refused("nonMasqueradeCIDRs: [10.0.0.0]")
            .starts_with("data[config].nonMasqueradeCIDRs[0]: must be a valid CIDR value")
    );
    assert_eq!(
        refused("nonMasqCIDRs: []"),
        r#"data[config]: strict decoding error: unknown field "nonMasqCIDRs""#
    );
    assert!(refused("resyncInterval: 60").contains("data[config]: resyncInterval: invalid type"));
    assert!(refused("resyncInterval: soon").starts_with("data[config].resyncInterval: must be a duration"));
    assert!(refused("nonMasqueradeCIDRs: [").starts_with("data[config]: cannot parse config:"));
    let many = (0..65).map(|number| format!("10.{number}.0.0/16")).collect::<Vec<_>>().join(", ");
    assert_eq!(
        refused(&format!("nonMasqueradeCIDRs: [{many}]")),
        "data[config].nonMasqueradeCIDRs: must have at most 64 items, not 65"
    );
    assert_eq!(wrong("nonMasqueradeCIDRs: [x]\n").len(), 1, "the file by itself is read as strictly");
}

#[test]
fn ranges_go_when_their_config_map_does() {
    let map = config_map("ip-masq-agent", "config", "nonMasqueradeCIDRs: [10.0.0.0/8]");
    let mut live = Objects::parse("live.yaml", &(pod_text("a", "", "") + &map)).expect("sound");
    let before = live.resolve(None).expect("there is room");
    assert_eq!(before.settings.non_masquerade_cidrs.len(), 1);
    live.delete(&Objects::parse("live.yaml", &map).expect("sound"));
    let after = live.resolve(Some(&before)).expect("there is room");
    assert!(after.settings.non_masquerade_cidrs.is_empty());
}
