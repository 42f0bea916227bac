//! The kinds of objects that say something about the packet path, and a set of such objects.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cluster::{Cluster, Demand};
use super::cluster_policy::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy};
use super::error::{Error, Faults, Origin};
use super::own::{External, Testbed};
use super::read::{self, Document};
use super::{masquerade, strict, validate};

/// Declares every kind once: type, group, version, and whether its objects live in a namespace.
macro_rules! kinds {
    ($($kind:ident = $group:literal $version:literal, namespaced $namespaced:literal;)+) => {
        /// A kind of object that podpath reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind {
            $(#[doc = concat!("`", $version, "`, group `", $group, "`.")] $kind,)+
        }

        impl Kind {
            /// Every one.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            /// As in the field `kind`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)+ }
            }
            /// The part of `apiVersion` before the slash; empty for Kubernetes' core.
            pub const fn group(self) -> &'static str {
                match self { $(Self::$kind => $group,)+ }
            }
            /// The part of `apiVersion` after the slash.
            pub const fn version(self) -> &'static str {
                match self { $(Self::$kind => $version,)+ }
            }
            /// Its objects live in a namespace.
            pub const fn namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced,)+ }
            }
        }

        /// An object of a kind that podpath reads.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "each is named as its kind")]
        pub enum Object {
            $($kind(Box<$kind>),)+
        }

        impl Object {
            /// Which kind it is of.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)+ }
            }
            /// Name, namespace, labels and so on.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)+ }
            }
            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => &mut object.metadata,)+ }
            }
            /// As JSON, `apiVersion` and `kind` included.
            pub fn to_value(&self) -> Value {
                let value = match self { $(Self::$kind(object) => serde_json::to_value(object),)+ };
                value.expect("the fields of these types have string keys and finite numbers only")
            }
            fn decode(kind: Kind, value: &Value) -> Result<Self, String> {
                Ok(match kind { $(Kind::$kind => Self::$kind(strict::decode(value)?),)+ })
            }
        }
    };
}

kinds! {
    Namespace = "" "v1", namespaced false;
    Node = "" "v1", namespaced false;
    Pod = "" "v1", namespaced true;
    Service = "" "v1", namespaced true;
    EndpointSlice = "discovery.k8s.io" "v1", namespaced true;
    NetworkPolicy = "networking.k8s.io" "v1", namespaced true;
    ClusterNetworkPolicy = "policy.networking.k8s.io" "v1alpha2", namespaced false;
    AdminNetworkPolicy = "policy.networking.k8s.io" "v1alpha1", namespaced false;
    BaselineAdminNetworkPolicy = "policy.networking.k8s.io" "v1alpha1", namespaced false;
    Deployment = "apps" "v1", namespaced true;
    StatefulSet = "apps" "v1", namespaced true;
    DaemonSet = "apps" "v1", namespaced true;
    ReplicaSet = "apps" "v1", namespaced true;
    Job = "batch" "v1", namespaced true;
    ConfigMap = "" "v1", namespaced true;
    Testbed = "podpath.dev" "v1alpha1", namespaced false;
    External = "podpath.dev" "v1alpha1", namespaced false;
}

impl Kind {
    /// What belongs into `apiVersion`.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.version().into(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// The kind with this name and version. `Ok(None)` for a kind of somebody else's.
    fn of(api_version: &str, name: &str) -> Result<Option<Self>, String> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        // Before they had groups of their own, apps and networking lived in `extensions`.
        let ours = |kind: &&Kind| kind.name() == name && (kind.group() == group || group == "extensions");
        match Self::ALL.iter().find(ours) {
            Some(kind) if kind.api_version() == api_version => Ok(Some(*kind)),
            Some(kind) => Err(format!(
                "no matches for kind {name:?} in version {api_version:?}: write apiVersion: {}",
                kind.api_version()
            )),
            None if group == "podpath.dev" => Err(format!(
                "no matches for kind {name:?} in version {api_version:?}: kinds are Testbed and External"
            )),
            None => Ok(None),
        }
    }
}

/// What tells an object from every other: printed `NetworkPolicy shop/api`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// None for kinds that live in no namespace.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
            None => write!(f, "{} {}", self.kind.name(), self.name),
        }
    }
}

impl Object {
    /// What tells it from every other.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        Key {
            kind: self.kind(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// An object, and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Entry {
    /// For error messages.
    pub origin: Origin,
    /// Its namespace is always filled in, where its kind has one.
    pub object: Object,
}

/// How an [`Entry`] is written down.
#[derive(Serialize, Deserialize)]
struct Stored {
    origin: Origin,
    object: Value,
}

impl From<Entry> for Stored {
    fn from(entry: Entry) -> Self {
        Self { origin: entry.origin, object: entry.object.to_value() }
    }
}

impl TryFrom<Stored> for Entry {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        match typed(&stored.object)? {
            Some(object) => Ok(Self { origin: stored.origin, object }),
            None => Err("no object of a kind that podpath reads".into()),
        }
    }
}

/// `Ok(None)` for a kind of somebody else's.
fn typed(value: &Value) -> Result<Option<Object>, String> {
    let text = |field: &str| match value.get(field) {
        Some(Value::String(text)) => Ok(text.as_str()),
        _ => Err(format!("{field} not set")),
    };
    if !value.is_object() {
        return Err("not an object: expected fields like apiVersion and kind".into());
    }
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let Some(kind) = Kind::of(api_version, kind)? else {
        return Ok(None);
    };
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if kind == Kind::ConfigMap && !masquerade::is_agents(name) {
        return Ok(None);
    }
    let mut object = Object::decode(kind, value)?;
    let metadata = object.metadata_mut();
    if kind.namespaced() {
        metadata.namespace.get_or_insert_with(|| "default".into());
    } else {
        metadata.namespace = None;
    }
    Ok(Some(object))
}

/// What became of an object that was applied: the words that kubectl has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// It replaced one of the same name that differed.
    Configured,
    /// It is as it was.
    Unchanged,
}

/// A set of objects, each sound in itself, in the order of the input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Objects {
    entries: Vec<Entry>,
    /// Kinds that were passed over, and how many objects of each.
    skipped: BTreeMap<String, u32>,
}

impl Objects {
    /// Reads files, directories (`.yaml`, `.yml` and `.json` in them, no deeper) and `-`, standard input.
    ///
    /// # Errors
    /// Everything that is wrong with files or single objects, all at once.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let objects = Self::collect(read::paths(paths)?)?;
        objects.or_nothing(|| match paths {
            [] => "the input".to_owned(),
            paths => paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Reads one text; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Objects::read`].
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        Self::collect(read::text(name, text)?)?.or_nothing(|| name.to_owned())
    }

    fn or_nothing(self, files: impl FnOnce() -> String) -> Result<Self, Error> {
        if self.entries.is_empty() {
            let kinds = Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
            return Err(Error::NoObjects { files: files(), kinds });
        }
        Ok(self)
    }

    fn collect(documents: Vec<Document>) -> Result<Self, Error> {
        let mut objects = Self::default();
        let mut faults = Faults::default();
        let mut seen: HashMap<Key, Origin> = HashMap::new();
        for Document { origin, value } in documents {
            let value = masquerade::bare(&value).unwrap_or(value);
            match typed(&value) {
                Ok(Some(object)) => {
                    let key = object.key();
                    validate::object(&object, &mut faults.of(&origin, key.to_string()));
                    match seen.insert(key.clone(), origin.clone()) {
                        Some(first) if !key.name.is_empty() => {
                            faults.push(Error::Duplicate { origin, object: key.to_string(), first });
                        }
                        _ => objects.entries.push(Entry { origin, object }),
                    }
                }
                Ok(None) => {
                    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
                    *objects.skipped.entry(kind.into()).or_default() += 1;
                }
                Err(why) => faults.push(Error::Decode { origin, object: title(&value), why }),
            }
        }
        faults.or(objects)
    }

    /// Every object, in the order of the input.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// How many objects of kinds that podpath doesn't read were passed over, by kind.
    pub fn skipped(&self) -> &BTreeMap<String, u32> {
        &self.skipped
    }

    /// Puts other objects in, each in the place of the one with its name if there is one (`kubectl apply`).
    pub fn apply(&mut self, other: Objects) -> Vec<(Key, Change)> {
        let mut places: HashMap<Key, usize> =
            self.entries.iter().enumerate().map(|(place, entry)| (entry.object.key(), place)).collect();
        let mut changes = Vec::new();
        for entry in other.entries {
            let key = entry.object.key();
            let change = match places.get(&key) {
                Some(&place) if self.entries[place].object == entry.object => Change::Unchanged,
                Some(&place) => {
                    self.entries[place] = entry;
                    Change::Configured
                }
                None => {
                    places.insert(key.clone(), self.entries.len());
                    self.entries.push(entry);
                    Change::Created
                }
            };
            changes.push((key, change));
        }
        changes
    }

    /// Takes the objects of these names out (`kubectl delete`), and with a namespace everything in it.
    /// Comes back with those that were there (`true`) and those that were not.
    pub fn delete(&mut self, named: &Objects) -> Vec<(Key, bool)> {
        let mut results = Vec::new();
        for key in named.entries.iter().map(|entry| entry.object.key()) {
            let before = self.entries.len();
            let inside = (key.kind == Kind::Namespace).then(|| key.name.clone());
            self.entries.retain(|entry| {
                let metadata = entry.object.metadata();
                entry.object.key() != key && (inside.is_none() || metadata.namespace != inside)
            });
            results.push((key, self.entries.len() < before));
        }
        results
    }

    /// What these objects ask of the ranges, without giving anybody an address: for planning.
    ///
    /// # Errors
    /// Everything that is wrong between objects, all at once.
    pub fn demand(&self) -> Result<Demand, Error> {
        super::resolve::demand(self)
    }

    /// The cluster that these objects describe.
    ///
    /// With `previous`, what was chosen for it (ranges, nodes, addresses) stays as it was.
    ///
    /// # Errors
    /// Everything that is wrong between objects, all at once; or that addresses ran out.
    pub fn resolve(&self, previous: Option<&Cluster>) -> Result<Cluster, Error> {
        super::resolve::cluster(self, previous)
    }
}

/// What to call an object that couldn't be decoded.
fn title(value: &Value) -> String {
    let text = |pointer| value.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object");
    match (text("/metadata/namespace"), text("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    }
}
