//! Which clients a node's Services need not remember any more.

use std::collections::{HashMap, HashSet};

use dataplane::tables::{Affine, Affinity, BackendId, Route, ServiceId};
use dataplane::wire::Address;

use super::{Prefix, Rows};

/// Those of these clients (rows of [`dataplane::tables::Affinities`]) whom their Service would not lead to the
/// backend they had any more: nobody who is where they are may be given to it, or the Service is gone, or has no
/// affinity. Where one frontend of the Service would and another would not, the path itself looks.
pub fn forgotten<A: Address>(rows: &Rows<A>, clients: &[(Affinity<A>, Affine)]) -> Vec<Affinity<A>> {
    if clients.is_empty() {
        return Vec::new();
    }
    let asked: HashSet<ServiceId> = clients.iter().map(|(client, _)| client.service).collect();
    let mut candidates: HashMap<(ServiceId, bool), HashSet<BackendId>> = HashMap::new();
    let mut known = HashSet::new();
    let services = rows.frontends.values().filter(|service| service.affinity_s != 0);
    for service in services.filter(|service| asked.contains(&service.id)) {
        for (slots, inside) in [(service.internal, true), (service.external, false)] {
            if known.insert((service.id, inside, slots)) {
                let run = rows.maglev.get(slots.first as usize..).unwrap_or_default();
                let run = run.iter().take(slots.count as usize);
                candidates.entry((service.id, inside)).or_default().extend(run);
            }
        }
    }
    let may_go = |(client, row): &&(Affinity<A>, Affine)| {
        let asks = (client.service, is_inside(rows, client.client));
        candidates.get(&asks).is_some_and(|them| them.contains(&row.backend))
    };
    clients.iter().filter(|one| !may_go(one)).map(|(client, _)| *client).collect()
}

/// Whether a client of this node's path is a pod of the node, or the node itself; anybody else comes from outside,
/// another node as well.
fn is_inside<A: Address>(rows: &Rows<A>, client: A) -> bool {
    let route = rows.routes.get(&Prefix { key: client, bits: A::BITS });
    route.is_some_and(|route| route.kind == Route::HOST) || rows.endpoints.contains_key(&client)
}

#[cfg(test)]
mod tests {
    use dataplane::tables::{Endpoint, Service, Slots};
    use dataplane::wire::V4;

    use super::*;
    use crate::plan::FrontendKey;

    const POD: V4 = V4([10, 244, 1, 5]);
    const WORLD: V4 = V4([203, 0, 113, 7]);
    const NODE: V4 = V4([10, 240, 0, 5]);

    /// A Service of number 7 with slots 1 and 2 for clients inside, 3 for those outside.
    fn rows() -> Rows<V4> {
        let service = Service {
            internal: Slots { first: 1, count: 2 },
            external: Slots { first: 3, count: 1 },
            id: ServiceId(7),
            affinity_s: 60,
            ..Service::default()
        };
        let key = FrontendKey { address: V4([10, 96, 0, 1]), port: 80, protocol: 6 };
        Rows {
            endpoints: [(POD, Endpoint::default())].into(),
            routes: [(
                Prefix { key: NODE, bits: 32 },
                Route { own: 1, kind: Route::REMOTE, ..Route::default() },
            )]
            .into(),
            frontends: [(key, service)].into(),
            maglev: [9, 1, 2, 3, 4].map(BackendId).to_vec(),
            ..Rows::default()
        }
    }

    fn remembered(client: V4, service: u32, backend: u32) -> (Affinity<V4>, Affine) {
        let client = Affinity { client, service: ServiceId(service) };
        (client, Affine { backend: BackendId(backend), ..Affine::default() })
    }

    #[test]
    fn a_client_is_remembered_while_its_backend_is_a_candidate_for_it() {
        // Another node comes in from outside, as its node ports are dialled.
        for (client, stay) in [(POD, &[1, 2][..]), (WORLD, &[3]), (NODE, &[3])] {
            for backend in [1, 2, 3, 4, 9] {
                let clients = [remembered(client, 7, backend)];
                let stays = forgotten(&rows(), &clients).is_empty();
                assert_eq!(stays, stay.contains(&backend), "{client:?} of {backend}");
            }
        }
    }

    #[test]
    fn nobody_is_remembered_by_a_service_that_is_gone_or_has_no_affinity() {
        let (here, gone) = (remembered(POD, 7, 1), remembered(POD, 8, 1));
        assert_eq!(forgotten(&rows(), &[here, gone]), [gone.0]);
        let mut without = rows();
        without.frontends.values_mut().for_each(|service| service.affinity_s = 0);
        assert_eq!(forgotten(&without, &[here]), [here.0]);
    }
}
