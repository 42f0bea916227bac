//! The unedited output of `kubectl get nodes,ns,pods,svc,endpointslices,netpol -A -o yaml` is accepted.

use userspace::model::Protocol;

use crate::{cluster, pod};

/// Two nodes, a namespace, three pods of a Deployment and a DaemonSet, and what belongs to them; of a server's
/// fields all that stands in the way of a strict reader, some of them newer than any client.
const DUMP: &str = r#"apiVersion: v1
items:
- apiVersion: v1
  kind: Node
  metadata:
    annotations:
      csi.volume.kubernetes.io/nodeid: '{"disk.csi.azure.com":"aks-nodepool1-0"}'
      node.alpha.kubernetes.io/ttl: "0"
    creationTimestamp: "2026-03-02T08:11:14Z"
    labels:
      beta.kubernetes.io/arch: amd64
      kubernetes.azure.com/role: agent
      kubernetes.io/hostname: aks-nodepool1-0
      kubernetes.io/os: linux
    managedFields:
    - apiVersion: v1
      fieldsType: FieldsV1
      fieldsV1:
        f:metadata:
          f:labels:
            .: {}
            f:kubernetes.io/os: {}
      manager: kubelet
      operation: Update
      time: "2026-03-02T08:11:14Z"
    name: aks-nodepool1-0
    resourceVersion: "4711"
    uid: 6d8d4a4e-3f4f-4a47-a4ae-3e5a3c9e4b10
  spec:
    podCIDR: 10.244.1.0/24
    podCIDRs:
    - 10.244.1.0/24
    providerID: azure:///subscriptions/0/resourceGroups/mc/providers/Microsoft.Compute/virtualMachines/0
    fieldFromTheFuture: {a: 1}
  status:
    addresses:
    - address: aks-nodepool1-0
      type: Hostname
    - address: 10.224.0.4
      type: InternalIP
    allocatable: {cpu: 1900m, ephemeral-storage: "119703055367", memory: 5160408Ki, pods: "250"}
    conditions:
    - lastHeartbeatTime: "2026-03-02T09:11:14Z"
      lastTransitionTime: "2026-03-02T08:11:14Z"
      message: kubelet is posting ready status
      reason: KubeletReady
      status: "False"
      type: Ready
    daemonEndpoints:
      kubeletEndpoint: {Port: 10250}
    images:
    - names: ["registry.example/pause@sha256:00", "registry.example/pause:3.9"]
      sizeBytes: 322000
    nodeInfo: {architecture: amd64, bootID: "", containerRuntimeVersion: "containerd://2", kernelVersion: 6.8.0, kubeProxyVersion: v1.34.0, kubeletVersion: v1.34.0, machineID: "", operatingSystem: linux, osImage: Ubuntu, systemUUID: ""}
- apiVersion: v1
  kind: Node
  metadata:
    name: aks-nodepool1-1
    uid: 0f7c1d1e-0000-4a47-a4ae-3e5a3c9e4b11
  spec:
    podCIDR: 10.244.0.0/24
    podCIDRs: [10.244.0.0/24, "fd00:1::/64"]
  status:
    addresses:
    - {address: 10.224.0.5, type: InternalIP}
    - {address: "fd00::5", type: InternalIP}
- apiVersion: v1
  kind: Namespace
  metadata:
    creationTimestamp: "2026-03-02T08:12:00Z"
    labels: {kubernetes.io/metadata.name: shop, team: blue}
    name: shop
    uid: 1e0a7a40-2ad5-4c6e-8f9b-0d4b1d0f3c01
  spec:
    finalizers: [kubernetes]
  status: {phase: Active}
- apiVersion: v1
  kind: Pod
  metadata:
    generateName: api-6c9f7b8d5f-
    labels: {app: api, pod-template-hash: 6c9f7b8d5f}
    name: api-6c9f7b8d5f-x2vqk
    namespace: shop
    ownerReferences:
    - {apiVersion: apps/v1, blockOwnerDeletion: true, controller: true, kind: ReplicaSet, name: api-6c9f7b8d5f, uid: 5f4a0c55-0000-4a47-a4ae-3e5a3c9e4b12}
    uid: 2a8a2c4e-0000-4a47-a4ae-3e5a3c9e4b13
  spec:
    containers:
    - image: registry.example/api:1
      imagePullPolicy: IfNotPresent
      name: api
      ports:
      - {containerPort: 8080, name: http, protocol: TCP}
      - {containerPort: 8080, name: http-udp, protocol: UDP}
      resources: {limits: {cpu: 100m, memory: 128Mi}}
      livenessProbe: {failureThreshold: 3, httpGet: {path: /healthz, port: http, scheme: HTTP}, periodSeconds: 10}
      terminationMessagePath: /dev/termination-log
      volumeMounts:
      - {mountPath: /var/run/secrets/kubernetes.io/serviceaccount, name: kube-api-access-1, readOnly: true}
    dnsPolicy: ClusterFirst
    enableServiceLinks: true
    nodeName: aks-nodepool1-0
    preemptionPolicy: PreemptLowerPriority
    priority: 0
    tolerations:
    - {effect: NoExecute, key: node.kubernetes.io/not-ready, operator: Exists, tolerationSeconds: 300}
    volumes:
    - name: kube-api-access-1
      projected:
        defaultMode: 420
        sources:
        - serviceAccountToken: {expirationSeconds: 3607, path: token}
        - downwardAPI: {items: [{fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}, path: namespace}]}
  status:
    conditions:
    - {lastProbeTime: null, lastTransitionTime: "2026-03-02T08:13:00Z", observedGeneration: 1, status: "True", type: Ready}
    containerStatuses:
    - containerID: containerd://1
      image: registry.example/api:1
      imageID: registry.example/api@sha256:1
      lastState: {}
      name: api
      ready: true
      restartCount: 0
      started: true
      state: {running: {startedAt: "2026-03-02T08:13:00Z"}}
    hostIP: 10.224.0.4
    hostIPs: [{ip: 10.224.0.4}]
    phase: Running
    podIP: 10.244.1.17
    podIPs: [{ip: 10.244.1.17}]
    qosClass: Burstable
    startTime: "2026-03-02T08:12:30Z"
- apiVersion: v1
  kind: Pod
  metadata: {name: api-6c9f7b8d5f-zz9pl, namespace: shop, labels: {app: api}, uid: 2a8a2c4e-0000-4a47-a4ae-3e5a3c9e4b14}
  spec: {containers: [{name: api, image: x}], schedulerName: default-scheduler}
  status:
    conditions:
    - {lastProbeTime: null, lastTransitionTime: "2026-03-02T08:13:00Z", message: 0/2 nodes are available, reason: Unschedulable, status: "False", type: PodScheduled}
    phase: Pending
- apiVersion: v1
  kind: Pod
  metadata: {name: kube-proxy-8x7zt, namespace: kube-system, labels: {component: kube-proxy}, uid: 2a8a2c4e-0000-4a47-a4ae-3e5a3c9e4b15}
  spec: {containers: [{name: kube-proxy, image: x}], hostNetwork: true, nodeName: aks-nodepool1-1}
  status:
    conditions: [{status: "True", type: Ready, lastTransitionTime: "2026-03-02T08:13:00Z"}]
    hostIP: 10.224.0.5
    phase: Running
    podIP: 10.224.0.5
    podIPs: [{ip: 10.224.0.5}]
- apiVersion: v1
  kind: Service
  metadata:
    labels: {component: apiserver, provider: kubernetes}
    name: kubernetes
    namespace: default
    uid: 3b1d7a52-0000-4a47-a4ae-3e5a3c9e4b16
  spec:
    clusterIP: 10.0.0.1
    clusterIPs: [10.0.0.1]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{name: https, port: 443, protocol: TCP, targetPort: 443}]
    sessionAffinity: None
    type: ClusterIP
  status: {loadBalancer: {}}
- apiVersion: v1
  kind: Service
  metadata: {name: api, namespace: shop, uid: 3b1d7a52-0000-4a47-a4ae-3e5a3c9e4b17}
  spec:
    clusterIP: 10.0.181.7
    clusterIPs: [10.0.181.7]
    ports: [{name: http, port: 80, protocol: TCP, targetPort: http}]
    selector: {app: api}
    type: ClusterIP
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses: [10.224.0.200]
    conditions: {ready: true}
  kind: EndpointSlice
  metadata:
    labels: {kubernetes.io/service-name: kubernetes}
    name: kubernetes
    namespace: default
    uid: 3b1d7a52-0000-4a47-a4ae-3e5a3c9e4b18
  ports: [{name: https, port: 443, protocol: TCP}]
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses: [10.244.1.17]
    conditions: {ready: true, serving: true, terminating: false}
    nodeName: aks-nodepool1-0
    targetRef: {kind: Pod, name: api-6c9f7b8d5f-x2vqk, namespace: shop, uid: 2a8a2c4e-0000-4a47-a4ae-3e5a3c9e4b13}
    zone: "0"
  kind: EndpointSlice
  metadata:
    generateName: api-
    labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io, kubernetes.io/service-name: api}
    name: api-7kq2m
    namespace: shop
    uid: 3b1d7a52-0000-4a47-a4ae-3e5a3c9e4b19
  ports: [{name: http, port: 8080, protocol: TCP}]
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"api","namespace":"shop"}}
    generation: 1
    name: api
    namespace: shop
    uid: 3b1d7a52-0000-4a47-a4ae-3e5a3c9e4b20
  spec:
    ingress:
    - from:
      - namespaceSelector: {matchLabels: {team: blue}}
      ports: [{port: http, protocol: TCP}]
    podSelector: {matchLabels: {app: api}}
    policyTypes: [Ingress]
kind: List
metadata:
  resourceVersion: ""
"#;

#[test]
fn every_address_of_a_dump_is_honoured() {
    let cluster = cluster(DUMP);
    let nodes: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| format!("{} {} {:?}", node.name, node.address(), node.pod_cidrs.first()))
        .collect();
    assert_eq!(
        nodes,
        ["aks-nodepool1-0 10.224.0.4 Some(10.244.1.0/24)", "aks-nodepool1-1 10.224.0.5 Some(10.244.0.0/24)"]
    );
    let api = pod(&cluster, "shop/api-6c9f7b8d5f-x2vqk");
    assert_eq!((api.address().to_string().as_str(), api.node.as_str()), ("10.244.1.17", "aks-nodepool1-0"));
    assert_eq!(api.ports[1].protocol, Protocol::Udp);
    let proxy = pod(&cluster, "kube-system/kube-proxy-8x7zt");
    assert!(proxy.host_network);
    assert_eq!(proxy.address().to_string(), "10.224.0.5");
    assert_eq!(
        cluster.service("shop/api").map(|service| service.address().to_string()).as_deref(),
        Some("10.0.181.7")
    );
}

#[test]
fn a_pending_pod_of_a_dump_is_placed_beside_the_others_and_not_ready() {
    let cluster = cluster(DUMP);
    let pending = pod(&cluster, "shop/api-6c9f7b8d5f-zz9pl");
    assert_eq!(
        (pending.node.as_str(), pending.address().to_string().as_str()),
        ("aks-nodepool1-0", "10.244.1.2")
    );
    assert!(!pending.ready);
}

#[test]
fn the_ranges_of_a_dump_are_found_around_its_addresses() {
    let settings = cluster(DUMP).settings;
    assert_eq!(settings.node_subnets[0].to_string(), "10.224.0.0/16");
    assert_eq!(settings.pod_cidrs[0].to_string(), "10.244.0.0/16");
    assert_eq!(settings.service_cidrs[0].to_string(), "10.0.0.0/16");
}

#[test]
fn endpoints_and_policies_of_a_dump_are_kept() {
    let cluster = cluster(DUMP);
    let backends =
        |id: &str| cluster.service(id).map(|service| service.ports[0].backends.clone()).unwrap_or_default();
    assert_eq!((backends("shop/api").len(), backends("shop/api")[0].port), (1, 8080));
    assert_eq!(backends("default/kubernetes")[0].address.to_string(), "10.224.0.200");
    assert_eq!(cluster.policies.len(), 1);
    assert_eq!(cluster.namespaces["shop"]["team"], "blue");
    assert_eq!(cluster.namespaces["kube-system"]["kubernetes.io/metadata.name"], "kube-system");
}
