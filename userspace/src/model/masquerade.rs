//! The configuration of ip-masq-agent: what leaves the cluster with a pod's own address.
//!
//! It comes in a ConfigMap, each of whose values is YAML or JSON, or as such a text by itself, which then
//! stands for the ConfigMap that the agent would mount.
//!
//! Source: kubernetes-sigs/ip-masq-agent; AKS, "egress control of masquerading" (azure-ip-masq-agent).

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Fields;
use super::object::{Object, Objects};
use super::{amount, read, strict, syntax};

/// What the ConfigMap is called; AKS has several, whose names go on after theirs.
const NAME: &str = "ip-masq-agent";
const AKS_NAME: &str = "azure-ip-masq-agent-config";
/// Source: ip-masq-agent, its limit.
const MOST_CIDRS: usize = 64;

/// The agent's configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    #[serde(rename = "nonMasqueradeCIDRs")]
    non_masquerade_cidrs: Option<Vec<String>>,
    masq_link_local: Option<bool>,
    #[serde(rename = "masqLinkLocalIPv6")]
    masq_link_local_ipv6: Option<bool>,
    resync_interval: Option<String>,
}

/// What a ConfigMap says.
#[derive(Debug, Default)]
pub(super) struct Masquerade {
    pub(super) cidrs: Vec<IpNet>,
    /// It speaks of link-local destinations.
    pub(super) link_local: bool,
}

/// A ConfigMap of this name is ip-masq-agent's.
pub(super) fn is_agents(name: &str) -> bool {
    name == NAME || name.starts_with(AKS_NAME)
}

/// The ConfigMap that a configuration file without kind and version stands for; `None` if it is none.
pub(super) fn bare(value: &Value) -> Option<Value> {
    let fields = value.as_object()?;
    let known = ["nonMasqueradeCIDRs", "masqLinkLocal", "masqLinkLocalIPv6", "resyncInterval"];
    let is_config = !fields.contains_key("kind")
        && !fields.contains_key("apiVersion")
        && known.iter().any(|field| fields.contains_key(*field));
    is_config.then(|| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": "kube-system"},
            "data": {"config": value.to_string()},
        })
    })
}

/// Reads every value of a ConfigMap, and notes what is wrong with it.
pub(super) fn read(config: &ConfigMap, fields: &mut Fields<'_>) -> Masquerade {
    let mut found = Masquerade::default();
    for (key, text) in config.data.iter().flatten() {
        let path = format!("data[{key}]");
        let documents = match read::text(key, text) {
            Ok(documents) => documents,
            Err(error) => {
                fields.wrong(path, error.to_string());
                continue;
            }
        };
        for document in documents {
            match strict::decode::<Config>(&document.value) {
                Ok(config) => found.add(&config, &path, fields),
                Err(why) => fields.wrong(path.clone(), why),
            }
        }
    }
    found
}

impl Masquerade {
    fn add(&mut self, config: &Config, path: &str, fields: &mut Fields<'_>) {
        let cidrs = config.non_masquerade_cidrs.as_deref().unwrap_or_default();
        if cidrs.len() > MOST_CIDRS {
            let why = format!("must have at most {MOST_CIDRS} items, not {}", cidrs.len());
            fields.wrong(format!("{path}.nonMasqueradeCIDRs"), why);
        }
        for (i, text) in cidrs.iter().enumerate() {
            match syntax::cidr(text) {
                Ok(range) => self.cidrs.push(range.trunc()),
                Err(why) => fields.wrong(format!("{path}.nonMasqueradeCIDRs[{i}]"), why),
            }
        }
        if let Some(Err(why)) = config.resync_interval.as_deref().map(amount::duration) {
            fields.wrong(format!("{path}.resyncInterval"), why);
        }
        self.link_local |= config.masq_link_local.is_some() || config.masq_link_local_ipv6.is_some();
    }
}

/// What all ConfigMaps of the agent say, and what to tell the user of it.
pub(super) fn all(objects: &Objects) -> (Vec<IpNet>, Vec<String>) {
    let (mut cidrs, mut notes) = (Vec::new(), Vec::new());
    for entry in objects.iter() {
        let Object::ConfigMap(config) = &entry.object else {
            continue;
        };
        let key = entry.object.key();
        // It has been validated.
        let found = read(config, &mut super::error::Faults::default().of(&entry.origin, key.to_string()));
        let ranges: Vec<String> = found.cidrs.iter().map(IpNet::to_string).collect();
        let ranges = if ranges.is_empty() { "nothing".to_owned() } else { ranges.join(", ") };
        notes.push(format!("{key} says not to masquerade what goes to {ranges}."));
        if found.link_local {
            notes.push(format!(
                "masqLinkLocal of {key} changes nothing: what goes to link-local addresses never leaves a node here, masqueraded or not."
            ));
        }
        cidrs.extend(found.cidrs);
    }
    (cidrs, notes)
}
