//! Why the fabric did not deliver a frame: the one list.

/// Declares the losses once: slug (metrics, JSON, the walk), sentence (people).
macro_rules! losses {
    ($($name:ident = $slug:literal, $sentence:literal;)+) => {
        /// Why a frame ended in the fabric. The slug is the stable name, in counters and JSON.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Loss {
            $(#[doc = $sentence] $name,)+
        }

        impl Loss {
            /// Every loss.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable name.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)+ }
            }

            /// What it means, for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)+ }
            }
        }
    };
}

losses! {
    Unreadable = "unreadable", "It is neither ARP nor an IP packet with sound headers.";
    Spoofed = "spoofed", "Its source address is not one of the sender's.";
    LinkLoss = "link-loss", "The link lost it, as it was told to.";
    LinkQueueFull = "link-queue-full", "Too many frames waited for their turn on the link.";
    EndsHere = "ends-here", "Multicast, broadcast and questions that nobody answers end at the first link.";
    NoNeighbour = "no-neighbour", "Nobody has the hardware address.";
    NoRoute = "no-route", "No route leads to the destination.";
    RouteNone = "route-none", "A user-defined route leads nowhere.";
    NoAppliance = "no-appliance", "The next hop of a user-defined route is neither a node nor a host outside.";
    TtlExceeded = "ttl-exceeded", "The time to live ran out at the gateway.";
    TooBig = "too-big", "It is longer than the MTU.";
    SecurityDenied = "security-denied", "A security rule denies the flow.";
    FlowsExhausted = "flows-exhausted", "The node's interface holds as many flows as it can.";
    FragmentWithoutFirst = "fragment-without-first", "A later fragment of a packet whose first was not seen: its ports are not known.";
    SnatPortsExhausted = "snat-ports-exhausted", "All the node's SNAT ports are in use towards this destination.";
    SnatProtocol = "snat-protocol", "The load balancer's outbound rule translates TCP and UDP only.";
    NoFrontend = "no-frontend", "The load balancer has no such port at this address.";
    NoHealthyNode = "no-healthy-node", "Behind the load balancer's frontend no node answers health probes.";
    BalancerFragment = "balancer-fragment", "The load balancer does not balance packets in fragments.";
    BalancerFull = "balancer-full", "The load balancer holds as many flows as it can.";
    BalancerTranslation = "balancer-translation", "An ICMP error or a packet of SCTP, which the load balancer does not translate.";
    SnatNoFlow = "snat-no-flow", "No flow of a node stands behind this port of the outbound address.";
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.slug())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_loss_has_a_slug_of_its_own_and_a_sentence() {
        let slugs: BTreeSet<&str> = Loss::ALL.iter().map(|loss| loss.slug()).collect();
        assert_eq!(slugs.len(), Loss::ALL.len());
        for loss in Loss::ALL {
            assert!(loss.slug().bytes().all(|byte| byte == b'-' || byte.is_ascii_lowercase()), "{loss}");
            assert!(loss.sentence().ends_with('.'), "{loss}");
        }
    }
}
