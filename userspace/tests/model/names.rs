//! Names on the command line.

use userspace::model::{Endpoint, EndpointError, Found, Port, Protocol, Who};

use crate::{cluster, external_at, pod_text};

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_form_is_read_and_printed_alike() {
    for text in [
        "shop/web",
        "shop/web:8080/tcp",
        "ext:world",
        "ext:world:53/udp",
        "node:n1:22/tcp",
        "svc:shop/api:80/sctp",
        "svc:shop/api",
    ] {
        assert_eq!(endpoint(text).to_string(), text);
    }
    let web = endpoint("shop/web:8080");
    assert_eq!(web.who, Who::Pod("shop/web".into()));
    assert_eq!(web.port, Some(Port { number: 8080, protocol: Protocol::Tcp }));
    assert_eq!("ext:world".parse(), Ok(Who::External("world".into())));
}

#[test]
fn other_forms_are_refused_with_the_right_ones() {
    for (text, why) in [
        ("web", "the namespace is missing"),
        ("svc:api", "the namespace is missing"),
        ("shop/", "a name is missing"),
        ("ext:", "a name is missing"),
        ("node:a/b", "too many slashes"),
        ("shop/web:http", "port \"http\" is not a number"),
        ("shop/web:0", "port must be between 1 and 65535, inclusive, not 0"),
        ("shop/web:80/icmp", "protocol \"icmp\" is none of tcp, udp and sctp"),
    ] {
        let error = text.parse::<Endpoint>().unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "cannot read {text:?}: {why}: write ns/pod, ext:name, node:name or svc:ns/name, with :8080/tcp after it if need be"
            )
        );
    }
}

#[test]
fn names_stand_for_what_is_in_the_cluster() {
    let cluster = cluster(&(pod_text("web", "", "") + &external_at("world", "1.1.1.1")));
    let find = |text: &str| cluster.find(&endpoint(text).who);
    assert_eq!(find("default/web"), Ok(Found::Pod(&cluster.pods[0])));
    assert_eq!(find("ext:world").map(|found| found.address().to_string()), Ok("1.1.1.1".into()));
    assert_eq!(find("node:n2").map(|found| found.who()), Ok(Who::Node("n2".into())));
    let unknown = |text: &str| find(text).unwrap_err().to_string();
    assert_eq!(unknown("default/wbe"), r#"unknown pod "default/wbe", did you mean "default/web"?"#);
    assert_eq!(unknown("ext:wrld"), r#"unknown external "wrld", did you mean "world"?"#);
    assert_eq!(unknown("svc:shop/api"), r#"unknown service "shop/api""#);
    assert!(matches!(find("node:quite-another"), Err(EndpointError::Unknown { what: "node", .. })));
}
