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
        "svc:shop/api@lb",
        "svc:shop/api@lb:80/tcp",
        "svc:shop/api@external:53/udp",
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
        ("svc:api@lb", "the namespace is missing"),
        ("svc:shop/api@node", "\"node\" is neither lb nor external"),
        ("svc:shop/api@", "\"\" is neither lb nor external"),
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
                "cannot read {text:?}: {why}: write ns/pod, ext:name, node:name, svc:ns/name, svc:ns/name@lb or svc:ns/name@external, with :8080/tcp after it if need be"
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

#[test]
fn a_service_has_a_name_at_each_of_its_addresses() {
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n"
        )
    };
    let cluster = cluster(
        &(service("all", "type: LoadBalancer, clusterIP: 10.96.0.9, externalIPs: [20.0.0.1, 20.0.0.2]")
            + &service("none", "")
            + &service("classy", "type: LoadBalancer, loadBalancerClass: example.com/metal")),
    );
    let find = |text: &str| cluster.find(&endpoint(text).who);
    for (text, addresses) in [
        ("svc:default/all", vec!["10.96.0.9"]),
        ("svc:default/all@lb", vec!["198.51.100.1"]),
        ("svc:default/all@external", vec!["20.0.0.1", "20.0.0.2"]),
    ] {
        let found = find(text).unwrap_or_else(|error| panic!("{error}"));
        let texts: Vec<String> = found.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(
            (texts, found.who().to_string()),
            (addresses.iter().map(ToString::to_string).collect(), text.to_owned())
        );
    }
    for (text, why) in [
        ("svc:default/none@lb", "only a Service of type LoadBalancer has one"),
        ("svc:default/none@external", "it states no externalIPs"),
        ("svc:default/classy@lb", "the load balancer gave it none that is on the path"),
    ] {
        assert_eq!(find(text).unwrap_err().to_string(), format!("{text} has no address: {why}"));
    }
    assert_eq!(
        find("svc:default/al@lb").unwrap_err().to_string(),
        r#"unknown service "default/al", did you mean "default/all"?"#
    );
}
