//! NetworkPolicies that the API server would refuse are refused in its words.

use crate::{cluster, fault};

/// A policy with this spec, in flow style.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: api, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// What is wrong with a policy.
fn refused(spec: &str) -> String {
    let fault = fault(&policy(spec));
    fault.strip_prefix("NetworkPolicy shop/api: ").expect("the object is named").to_owned()
}

#[test]
fn sound_policies_are_kept_as_they_were_written_with_their_namespace() {
    let spec = "podSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}]}, policyTypes: [Ingress, Egress],
        ingress: [{from: [{podSelector: {}, namespaceSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 80, endPort: 90}, {port: http, protocol: UDP}, {protocol: SCTP}]}],
        egress: [{}, {to: [{ipBlock: {cidr: \"2001:db8::/32\"}}]}]";
    let cluster = cluster(&policy(spec));
    let policy = &cluster.policies[0];
    assert_eq!(policy.metadata.namespace.as_deref(), Some("shop"));
    let kept = policy.spec.as_ref().expect("it has a spec");
    assert_eq!(kept.egress.as_ref().map(Vec::len), Some(2));
    assert_eq!(kept.ingress.as_ref().and_then(|rules| rules[0].ports.as_ref()).map(Vec::len), Some(3));
}

#[test]
fn a_policy_without_a_namespace_is_in_default() {
    let text = policy("podSelector: {}").replace(", namespace: shop", "");
    assert_eq!(cluster(&text).policies[0].metadata.namespace.as_deref(), Some("default"));
}

#[test]
fn an_exception_must_be_inside_its_block() {
    for except in ["10.0.0.0/8", "10.0.0.0/16", "192.168.0.0/24", "\"2001:db8::/64\""] {
        let fault = refused(&format!(
            "ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/16, except: [{except}]}}}}]}}]"
        ));
        assert!(
            fault.starts_with("spec.ingress[0].from[0].ipBlock.except[0]: must be a strict subset of cidr"),
            "{fault}"
        );
    }
}

#[test]
fn a_block_must_be_a_range() {
    for cidr in ["10.0.0.0", "10.0.0/8", "10.0.0.0/33", "web"] {
        let fault = refused(&format!("egress: [{{}}, {{to: [{{ipBlock: {{cidr: {cidr}}}}}]}}]"));
        assert!(fault.starts_with("spec.egress[1].to[0].ipBlock.cidr: must be a valid CIDR"), "{fault}");
    }
    assert_eq!(
        refused("egress: [{to: [{ipBlock: {}}]}]"),
        "spec.egress[0].to[0].ipBlock.cidr: Required value"
    );
}

#[test]
fn a_range_of_ports_must_go_upwards() {
    assert_eq!(
        refused("ingress: [{ports: [{port: 90, endPort: 80}]}]"),
        "spec.ingress[0].ports[0].endPort: must be greater than or equal to `port`, not 80 (port is 90)"
    );
    assert_eq!(
        refused("ingress: [{ports: [{endPort: 80}]}]"),
        "spec.ingress[0].ports[0].endPort: may not be specified when `port` is not specified"
    );
    assert_eq!(
        refused("ingress: [{ports: [{port: http, endPort: 80}]}]"),
        "spec.ingress[0].ports[0].endPort: may not be specified when `port` is non-numeric"
    );
}

#[test]
fn ports_and_protocols_must_exist() {
    assert_eq!(
        refused("ingress: [{ports: [{port: 0}]}]"),
        "spec.ingress[0].ports[0].port: must be between 1 and 65535, inclusive, not 0"
    );
    assert_eq!(
        refused("egress: [{ports: [{port: 1, endPort: 65536}]}]"),
        "spec.egress[0].ports[0].endPort: must be between 1 and 65535, inclusive, not 65536"
    );
    assert_eq!(
        refused("ingress: [{ports: [{port: not_a_name}]}]"),
        "spec.ingress[0].ports[0].port: must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), not \"not_a_name\""
    );
    assert_eq!(
        refused("ingress: [{ports: [{protocol: tcp}]}]"),
        r#"spec.ingress[0].ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#
    );
}

#[test]
fn a_peer_is_either_a_block_or_selectors() {
    assert_eq!(
        refused("ingress: [{from: [{}]}]"),
        "spec.ingress[0].from[0]: Required value: must specify a peer"
    );
    assert_eq!(
        refused("ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]"),
        "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"
    );
}

#[test]
fn a_selector_that_cannot_be_is_refused() {
    let requirement = |text: &str| refused(&format!("podSelector: {{matchExpressions: [{{{text}}}]}}"));
    let path = "spec.podSelector.matchExpressions[0]";
    assert_eq!(
        requirement("key: a, operator: In"),
        format!("{path}.values: Required value: must be specified when `operator` is 'In' or 'NotIn'")
    );
    assert_eq!(
        requirement("key: a, operator: Exists, values: [b]"),
        format!(
            "{path}.values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        )
    );
    assert!(
        requirement("key: a, operator: in, values: [b]")
            .starts_with(&format!("{path}.operator: not a valid selector operator"))
    );
    assert!(
        requirement("key: -a, operator: Exists")
            .starts_with(&format!("{path}.key: name part must consist of"))
    );
    assert!(
        requirement("key: a, operator: In, values: [b b]")
            .starts_with(&format!("{path}.values[0]: a valid label must be"))
    );
    assert!(refused("podSelector: {matchLabels: {a/b/c: d}}").starts_with("spec.podSelector.matchLabels: "));
    assert!(
        refused("ingress: [{from: [{namespaceSelector: {matchLabels: {a: \"-\"}}}]}]")
            .starts_with("spec.ingress[0].from[0].namespaceSelector.matchLabels: a valid label must be")
    );
}

#[test]
fn policy_types_are_ingress_and_egress() {
    assert_eq!(
        refused("policyTypes: [Ingres]"),
        r#"spec.policyTypes[0]: Unsupported value: "Ingres": supported values: "Egress", "Ingress""#
    );
    assert_eq!(
        refused("policyTypes: [Ingress, Egress, Ingress]"),
        "spec.policyTypes: may not specify more than two policyTypes"
    );
}

#[test]
fn a_policy_without_a_spec_is_the_empty_one() {
    let text =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: api, namespace: shop}\n";
    assert_eq!(cluster(text).policies, cluster(&format!("{text}spec: {{}}\n")).policies);
    assert!(cluster(text).policies[0].spec.is_some());
}
