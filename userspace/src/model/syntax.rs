//! What names, labels, ports and ranges look like, and the API server's words for those that don't.
//!
//! Source: Kubernetes, `apimachinery/pkg/util/validation`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cluster::Protocol;
use super::words;

const LABEL: &str = "must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const SUBDOMAIN: &str = "must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// `Ok` if a text is what it should be, else why it isn't.
pub(super) type Verdict = Result<(), String>;

/// Says what was found as well, because a field path alone makes the reader look it up.
fn not(rule: &str, found: &str) -> Verdict {
    Err(format!("{rule}, not {found:?}"))
}

/// Made of these characters, with a letter or digit at both ends.
fn well_formed(text: &str, inside: fn(u8) -> bool, end: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| inside(*byte))
        && bytes.first().copied().is_some_and(end)
        && bytes.last().copied().is_some_and(end)
}

const fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Namespaces, Services and Testbeds (RFC 1123).
pub(super) fn dns_label(name: &str, longest: usize) -> Verdict {
    if !well_formed(name, |b| lower(b) || b == b'-', lower) {
        return not(&format!("a lowercase RFC 1123 label {LABEL}"), name);
    }
    at_most(name, longest)
}

/// Most names (RFC 1123).
pub(super) fn dns_subdomain(name: &str) -> Verdict {
    if !name.split('.').all(|label| well_formed(label, |b| lower(b) || b == b'-', lower)) {
        return not(&format!("a lowercase RFC 1123 subdomain {SUBDOMAIN}"), name);
    }
    at_most(name, 253)
}

/// The least that is asked of any name.
pub(super) fn path_segment(name: &str) -> Verdict {
    let unfit = |c: char| matches!(c, '/' | '%' | ':') || c.is_whitespace() || c.is_control();
    if matches!(name, "." | "..") || name.contains(unfit) {
        return not("may not be '.' or '..' or contain '/', '%', ':' or white space", name);
    }
    at_most(name, 253)
}

fn at_most(text: &str, longest: usize) -> Verdict {
    if text.len() > longest { not(&format!("must be no more than {longest} bytes"), text) } else { Ok(()) }
}

fn qualified(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// `app`, `app.kubernetes.io/name`.
pub(super) fn label_key(key: &str) -> Verdict {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
            name
        }
        None => key,
    };
    if !well_formed(name, qualified, |b| b.is_ascii_alphanumeric()) {
        return not(&format!("name part {QUALIFIED}"), key);
    }
    at_most(name, 63)
}

/// What a label may be set to.
pub(super) fn label_value(value: &str) -> Verdict {
    if !value.is_empty() && !well_formed(value, qualified, |b| b.is_ascii_alphanumeric()) {
        return not(LABEL_VALUE, value);
    }
    at_most(value, 63)
}

/// A port's number.
pub(super) fn port(number: i64) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("must be between 1 and 65535, inclusive, not {number}"))
}

/// A port's name (RFC 6335).
pub(super) fn port_name(name: &str) -> Verdict {
    let bytes = name.as_bytes();
    if name.len() > 15 {
        not("must be no more than 15 characters", name)
    } else if !bytes.iter().all(|b| lower(*b) || *b == b'-') {
        not("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)", name)
    } else if !bytes.iter().any(u8::is_ascii_lowercase) {
        not("must contain at least one letter (a-z)", name)
    } else if name.contains("--") {
        not("must not contain consecutive hyphens", name)
    } else if name.starts_with('-') || name.ends_with('-') {
        not("must not begin or end with a hyphen", name)
    } else {
        Ok(())
    }
}

/// A port by number or by name.
pub(super) fn port_or_name(value: &IntOrString) -> Verdict {
    match value {
        IntOrString::Int(number) => port((*number).into()).map(drop),
        IntOrString::String(name) => port_name(name),
    }
}

/// TCP when left out.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(unsupported(other, &words::PROTOCOLS)),
    }
}

/// A value that is none of a few.
pub(super) fn unsupported(value: &str, supported: &[&str]) -> String {
    let supported = supported.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(", ");
    format!("Unsupported value: {value:?}: supported values: {supported}")
}

/// A range, of either family. Bits after the prefix may be set, as Kubernetes has always allowed.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse()
        .map_err(|_| format!("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64), not {text:?}"))
}

/// An address, of either family.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), not {text:?}"))
}

/// An address that one host can have.
pub(super) fn host_address(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
        return Err(format!("must be the address of one host, not {text:?}"));
    }
    if let IpAddr::V6(six) = address
        && six.to_ipv4_mapped().is_some()
    {
        return Err(format!("must not be an IPv4-mapped IPv6 address, as {text:?} is"));
    }
    Ok(address)
}

/// A name that is looked up the same from everywhere: two labels at least.
pub(super) fn full_name(name: &str) -> Verdict {
    let bare = name.strip_suffix('.').unwrap_or(name);
    if !bare.contains('.') {
        return not("should be a domain with at least two segments separated by dots", name);
    }
    dns_subdomain(bare)
}

/// A name in the DNS, or `*.` and the name that others end in.
pub(super) fn domain_name(text: &str) -> Verdict {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let name = name.strip_suffix('.').unwrap_or(name);
    let alphanumeric = |b: u8| b.is_ascii_alphanumeric();
    let label = |label: &str| {
        well_formed(label, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'), alphanumeric)
    };
    if !name.contains('.') || !name.split('.').all(label) {
        return not(
            "must be a domain name of two labels at least, (e.g. kubernetes.io or *.kubernetes.io)",
            text,
        );
    }
    Ok(())
}

/// An address that means the same on every host.
pub(super) fn not_special(address: IpAddr) -> Verdict {
    let (link_local, multicast) = match address {
        IpAddr::V4(four) => (four.is_link_local(), four.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(six) => (six.is_unicast_link_local(), six.segments()[0] & 0xff0f == 0xff02),
    };
    let why = if address.is_unspecified() {
        "may not be unspecified (0.0.0.0 or ::)"
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return Ok(());
    };
    not(why, &address.to_string())
}

/// Not more than one of each family. `what` is what they are: `IP` or `CIDR`.
pub(super) fn one_per_family(addresses: impl IntoIterator<Item = IpAddr>, what: &str) -> Verdict {
    let mut seen = [false; 2];
    for address in addresses {
        if std::mem::replace(&mut seen[usize::from(address.is_ipv6())], true) {
            return Err(format!("may specify no more than one {what} for each IP family"));
        }
    }
    Ok(())
}
