//! Is an object sound in itself? The API server's rules, for the fields that matter to the packet path.
//!
//! Source: Kubernetes, `pkg/apis/{core,networking,discovery,apps}/validation`.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::error::Fields;
use super::object::{Kind, Object};
use super::own::External;
use super::{choice, cluster_policy, masquerade, selector, stated, syntax};

mod service;

/// Notes every field of an object that can't be as it is.
pub(super) fn object(object: &Object, fields: &mut Fields<'_>) {
    metadata(object, fields);
    match object {
        Object::Node(_) => {}
        Object::Namespace(namespace) => {
            let path = format!("metadata.annotations[{}]", stated::AUDIT);
            note(fields, &path, stated::audit(&namespace.metadata));
        }
        Object::Pod(pod) => {
            weight(&pod.metadata, "", fields);
            if let Some(spec) = &pod.spec {
                pod_spec(spec, "spec", fields);
            }
        }
        Object::Service(service) => service::service(service, fields),
        Object::EndpointSlice(slice) => service::endpoint_slice(slice, fields),
        Object::NetworkPolicy(policy) => network_policy(policy, fields),
        Object::ClusterNetworkPolicy(_)
        | Object::AdminNetworkPolicy(_)
        | Object::BaselineAdminNetworkPolicy(_) => drop(cluster_policy::read(object, fields)),
        Object::Deployment(workload) => {
            template(&workload.spec.template, &workload.spec.selector, fields);
            replicas(workload.spec.replicas, "spec.replicas", fields);
        }
        Object::StatefulSet(workload) => {
            template(&workload.spec.template, &workload.spec.selector, fields);
            replicas(workload.spec.replicas, "spec.replicas", fields);
        }
        Object::DaemonSet(workload) => {
            template(&workload.spec.template, &workload.spec.selector, fields);
        }
        Object::ReplicaSet(workload) => {
            replicas(workload.spec.replicas, "spec.replicas", fields);
            template(
                workload.spec.template.as_ref().unwrap_or(&PodTemplateSpec::default()),
                &workload.spec.selector,
                fields,
            );
        }
        Object::Job(job) => {
            let Some(spec) = &job.spec else { return };
            replicas(spec.parallelism, "spec.parallelism", fields);
            replicas(spec.completions, "spec.completions", fields);
            pod_template(&spec.template, fields);
        }
        Object::Testbed(testbed) => drop(choice::read(&testbed.spec, fields)),
        Object::ConfigMap(config) => drop(masquerade::read(config, fields)),
        Object::External(external) => self::external(external, fields),
    }
}

fn metadata(object: &Object, fields: &mut Fields<'_>) {
    let metadata = object.metadata();
    let name = metadata.name.as_deref().unwrap_or_default();
    let verdict = match object.kind() {
        // The Testbed's has a default.
        Kind::Testbed if name.is_empty() => Ok(()),
        _ if name.is_empty() => {
            Err("Required value: name is required (podpath makes up none from generateName)".into())
        }
        // Services may begin with a digit since Kubernetes 1.34.
        Kind::Namespace | Kind::Service => syntax::dns_label(name, 63),
        // It is part of the names of network namespaces.
        Kind::Testbed => syntax::dns_label(name, 40),
        // Nothing is called by these names but the objects themselves: what can stand in a path will do.
        Kind::NetworkPolicy | Kind::EndpointSlice | Kind::External => syntax::path_segment(name),
        _ => syntax::dns_subdomain(name),
    };
    note(fields, "metadata.name", verdict);
    if let Some(namespace) = &metadata.namespace {
        note(fields, "metadata.namespace", syntax::dns_label(namespace, 63));
    }
    labels(metadata.labels.as_ref(), "metadata.labels", fields);
}

fn note<T>(fields: &mut Fields<'_>, path: &str, verdict: Result<T, String>) -> Option<T> {
    verdict.map_err(|why| fields.wrong(path, why)).ok()
}

fn labels(labels: Option<&BTreeMap<String, String>>, path: &str, fields: &mut Fields<'_>) {
    for (key, value) in labels.into_iter().flatten() {
        note(fields, path, syntax::label_key(key));
        note(fields, path, syntax::label_value(value));
    }
}

fn replicas(count: Option<i32>, path: &str, fields: &mut Fields<'_>) {
    if let Some(count) = count.filter(|count| *count < 0) {
        fields.wrong(path, format!("must be greater than or equal to 0, not {count}"));
    }
}

/// The pods of a workload must be its own.
fn template(template: &PodTemplateSpec, selector: &LabelSelector, fields: &mut Fields<'_>) {
    label_selector(selector, "spec.selector", fields);
    let template_labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    labels(template_labels, "spec.template.metadata.labels", fields);
    let empty = BTreeMap::new();
    if selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
    {
        fields.wrong("spec.selector", "Required value: empty selector is invalid for a workload");
    } else if !selector::matches(selector, template_labels.unwrap_or(&empty)) {
        fields.wrong("spec.template.metadata.labels", "`selector` does not match template `labels`");
    }
    pod_template(template, fields);
}

fn pod_template(template: &PodTemplateSpec, fields: &mut Fields<'_>) {
    if let Some(metadata) = &template.metadata {
        weight(metadata, "spec.template.", fields);
    }
    if let Some(spec) = &template.spec {
        pod_spec(spec, "spec.template.spec", fields);
    }
}

fn weight(metadata: &ObjectMeta, prefix: &str, fields: &mut Fields<'_>) {
    note(fields, &format!("{prefix}metadata.annotations[{}]", stated::WEIGHT), stated::weight(metadata));
}

fn pod_spec(spec: &PodSpec, path: &str, fields: &mut Fields<'_>) {
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        note(fields, &format!("{path}.nodeName"), syntax::dns_subdomain(node));
    }
    let init = spec.init_containers.iter().flatten();
    for (list, containers) in
        [("containers", spec.containers.iter().collect::<Vec<_>>()), ("initContainers", init.collect())]
    {
        for (i, container) in containers.into_iter().enumerate() {
            container_ports(container, &format!("{path}.{list}[{i}]"), fields);
        }
    }
}

fn container_ports(container: &Container, path: &str, fields: &mut Fields<'_>) {
    let mut names = HashSet::new();
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{i}]");
        note(fields, &format!("{path}.containerPort"), syntax::port(port.container_port.into()));
        note(fields, &format!("{path}.protocol"), syntax::protocol(port.protocol.as_deref()));
        if let Some(number) = port.host_port.filter(|number| *number != 0) {
            note(fields, &format!("{path}.hostPort"), syntax::port(number.into()));
        }
        note(fields, &format!("{path}.hostIP"), stated::host_ip(port));
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            note(fields, &format!("{path}.name"), syntax::port_name(name));
            if !names.insert(name) {
                fields.wrong(format!("{path}.name"), format!("Duplicate value: {name:?}"));
            }
        }
    }
}

fn network_policy(policy: &NetworkPolicy, fields: &mut Fields<'_>) {
    let Some(spec) = &policy.spec else { return };
    if let Some(selector) = &spec.pod_selector {
        label_selector(selector, "spec.podSelector", fields);
    }
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        rule_fields(
            &format!("spec.ingress[{i}]"),
            rule.ports.as_deref(),
            ("from", rule.from.as_deref()),
            fields,
        );
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        rule_fields(&format!("spec.egress[{i}]"), rule.ports.as_deref(), ("to", rule.to.as_deref()), fields);
    }
    let types: &[_] = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        fields.wrong("spec.policyTypes", "may not specify more than two policyTypes");
    }
    for (i, policy_type) in types.iter().enumerate() {
        if !["Ingress", "Egress"].contains(&policy_type.as_str()) {
            fields.wrong(
                format!("spec.policyTypes[{i}]"),
                syntax::unsupported(policy_type, &["Egress", "Ingress"]),
            );
        }
    }
}

fn rule_fields(
    path: &str,
    ports: Option<&[NetworkPolicyPort]>,
    (direction, peers): (&str, Option<&[NetworkPolicyPeer]>),
    fields: &mut Fields<'_>,
) {
    for (i, port) in ports.unwrap_or_default().iter().enumerate() {
        policy_port(port, &format!("{path}.ports[{i}]"), fields);
    }
    for (i, peer) in peers.unwrap_or_default().iter().enumerate() {
        policy_peer(peer, &format!("{path}.{direction}[{i}]"), fields);
    }
}

fn policy_port(port: &NetworkPolicyPort, path: &str, fields: &mut Fields<'_>) {
    note(fields, &format!("{path}.protocol"), syntax::protocol(port.protocol.as_deref()));
    if let Some(port) = &port.port {
        note(fields, &format!("{path}.port"), syntax::port_or_name(port));
    }
    let Some(end) = port.end_port else { return };
    let path = format!("{path}.endPort");
    match &port.port {
        None => fields.wrong(path, "may not be specified when `port` is not specified"),
        Some(IntOrString::String(_)) => fields.wrong(path, "may not be specified when `port` is non-numeric"),
        Some(IntOrString::Int(first)) if end < *first => {
            fields
                .wrong(path, format!("must be greater than or equal to `port`, not {end} (port is {first})"));
        }
        Some(IntOrString::Int(_)) => {
            note(fields, &path, syntax::port(end.into()));
        }
    }
}

fn policy_peer(peer: &NetworkPolicyPeer, path: &str, fields: &mut Fields<'_>) {
    let selectors = [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)];
    let mut selected = false;
    for (name, selector) in selectors {
        if let Some(selector) = selector {
            selected = true;
            label_selector(selector, &format!("{path}.{name}"), fields);
        }
    }
    match &peer.ip_block {
        Some(_) if selected => fields.wrong(path, "Forbidden: may not specify both ipBlock and another peer"),
        Some(block) => ip_block(block, &format!("{path}.ipBlock"), fields),
        None if !selected => fields.wrong(path, "Required value: must specify a peer"),
        None => {}
    }
}

fn ip_block(block: &IPBlock, path: &str, fields: &mut Fields<'_>) {
    if block.cidr.is_empty() {
        return fields.wrong(format!("{path}.cidr"), "Required value");
    }
    let whole = note(fields, &format!("{path}.cidr"), syntax::cidr(&block.cidr));
    for (i, text) in block.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{i}]");
        let except = note(fields, &path, syntax::cidr(text));
        if let (Some(whole), Some(except)) = (whole, except)
            && !(whole.contains(&except) && whole.prefix_len() < except.prefix_len())
        {
            fields
                .wrong(path, format!("must be a strict subset of cidr, not {text} (cidr is {})", block.cidr));
        }
    }
}

pub(super) fn label_selector(selector: &LabelSelector, path: &str, fields: &mut Fields<'_>) {
    labels(selector.match_labels.as_ref(), &format!("{path}.matchLabels"), fields);
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values: &[_] = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => fields.wrong(
                format!("{path}.values"),
                "Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => fields.wrong(
                format!("{path}.values"),
                "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => fields.wrong(
                format!("{path}.operator"),
                format!("not a valid selector operator: {other:?}: use In, NotIn, Exists or DoesNotExist"),
            ),
        }
        note(fields, &format!("{path}.key"), syntax::label_key(&requirement.key));
        for (j, value) in values.iter().enumerate() {
            note(fields, &format!("{path}.values[{j}]"), syntax::label_value(value));
        }
    }
}

fn external(external: &External, fields: &mut Fields<'_>) {
    note(fields, "spec.address", syntax::host_address(&external.spec.address));
    for (i, port) in external.spec.ports.iter().enumerate() {
        note(fields, &format!("spec.ports[{i}].port"), syntax::port(port.port));
        note(fields, &format!("spec.ports[{i}].protocol"), syntax::protocol(port.protocol.as_deref()));
    }
}
