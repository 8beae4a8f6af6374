//! The webhook's rules as a MutatingAdmissionPolicy: CEL in the API server, no server of
//! ours (Kubernetes 1.36 and later).
//!
//! There is exactly one mutation. With several, `failurePolicy: Ignore` applies those that
//! work: a pod could get volumes without mounts. An apply configuration merges volumes by
//! name and mounts by path, so nothing of the user's is replaced or moved.
//!
//! What CEL cannot do: warnings; removing a stale annotation; ephemeral containers; a
//! volume of the same path under another name is not reused; paths are compared without
//! their trailing slash but not otherwise normalised; one file listed twice with leading
//! slashes. The tests run both over the same pods.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
};
use lxcfs_common::catalogue::{Attach, CATALOGUE, Entry};
use lxcfs_common::pod;
use serde_json::{Value, json};

use super::{ManifestError, Options, cluster_meta, typed};
use crate::mutate::{Mode, mounts};

const NAME: &str = "lxcfs";

/// The policy and its binding.
pub fn objects(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let variables: Vec<Value> = variables(options)
        .into_iter()
        .map(|(name, expression)| json!({"name": name, "expression": expression}))
        .collect();
    let api = "admissionregistration.k8s.io/v1";
    Ok(vec![
        typed::<MutatingAdmissionPolicy>(json!({
            "apiVersion": api, "kind": "MutatingAdmissionPolicy",
            "metadata": cluster_meta(NAME, "policy"),
            "spec": {
                "matchConstraints": {
                    "matchPolicy": "Equivalent",
                    "namespaceSelector": {"matchExpressions": [{
                        "key": "kubernetes.io/metadata.name", "operator": "NotIn",
                        "values": options.config.excluded_namespaces,
                    }]},
                    "objectSelector": {},
                    "resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
                        "operations": ["CREATE"], "scope": "Namespaced",
                    }],
                },
                "matchConditions": conditions(options),
                "variables": variables,
                "failurePolicy": "Ignore",
                "reinvocationPolicy": "IfNeeded",
                "mutations": [{
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": mutation()},
                }],
            },
        }))?,
        typed::<MutatingAdmissionPolicyBinding>(json!({
            "apiVersion": api, "kind": "MutatingAdmissionPolicyBinding",
            "metadata": cluster_meta(NAME, "policy"),
            "spec": {"policyName": NAME},
        }))?,
    ])
}

/// True for pods that are not ours, by their label.
pub fn not_our_pod() -> String {
    let label = quote(pod::COMPONENT_LABEL);
    format!("!has(object.metadata.labels) || !({label} in object.metadata.labels)")
}

/// True when some switch of the pod is on and none is off.
pub fn switched_on() -> String {
    let any = |words: &[&str]| {
        format!(
            "object.metadata.annotations.exists(k, ({}) && \
             object.metadata.annotations[k].trim().lowerAscii() in {})",
            is_switch("k"),
            list(words)
        )
    };
    let (on, off) = (any(&pod::ON), any(&pod::OFF));
    format!("has(object.metadata.annotations) && {on} && !{off}")
}

fn conditions(options: &Options) -> Vec<Value> {
    let mut conditions = vec![
        json!({"name": "not-lxcfs-itself", "expression": not_our_pod()}),
        json!({
            "name": "no-mirror-pod",
            "expression": "!has(object.metadata.annotations) || \
                           !('kubernetes.io/config.mirror' in object.metadata.annotations)",
        }),
        json!({
            "name": "linux",
            "expression": "!has(object.spec.os) || object.spec.os.name == 'linux'",
        }),
    ];
    let classes = &options.config.excluded_runtime_classes;
    if !classes.is_empty() {
        let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
        conditions.push(json!({
            "name": "shares-the-nodes-kernel",
            "expression": format!(
                "!has(object.spec.runtimeClassName) || !(object.spec.runtimeClassName in {})",
                list(&classes)
            ),
        }));
    }
    conditions
}

/// In order: each may use those before it.
fn variables(options: &Options) -> Vec<(&'static str, String)> {
    let config = &options.config;
    let annotation = |key: &str, default: &str| {
        let (key, default) = (quote(key), quote(default));
        format!("({key} in variables.annotations ? variables.annotations[{key}] : {default})")
    };
    let namespace_label = |key: &str, test: String| {
        let key = quote(key);
        format!(
            "has(namespaceObject.metadata.labels) && {key} in namespaceObject.metadata.labels && \
             namespaceObject.metadata.labels[{key}] {test}"
        )
    };
    // A list without blanks, and without the slash of an absolute path.
    let words = |text: &str| {
        format!(
            "{text}.split(',').map(w, w.trim()).filter(w, w != '')\
             .map(w, w.replace('+/', '+').replace('-/', '-'))\
             .map(w, w.startsWith('/') ? w.substring(1) : w)"
        )
    };
    let starts_empty = |words: &str| {
        format!("{words}.exists(w, !w.startsWith('+') && !w.startsWith('-') && w != 'default')")
    };
    // The last word that names something decides; before the first, the default does.
    let picks = |words: &str, by_default: &str, names: &str| {
        let empty = starts_empty(words);
        format!(
            "([({by_default}) && !{empty} ? '+' : '-'] + \
             {words}.filter(w, w == 'default' ? ({by_default}) : ({names}))\
             .map(w, w.startsWith('-') ? '-' : '+')).join('').endsWith('+')"
        )
    };
    let file_names = "f.words.contains(',' + w + ',')";
    let attach_all = config.mode == Mode::Attach;
    let paths = "(has(c.volumeMounts) ? c.volumeMounts : [])";
    let path = "(m.mountPath.endsWith('/') && m.mountPath != '/' ? \
                m.mountPath.substring(0, m.mountPath.size() - 1) : m.mountPath)";
    let present = format!(
        "{paths}.exists(m, {path} == f.mount && !has(m.subPath) && !has(m.subPathExpr) && \
         (m.name + '=' + f.host) in variables.hostPaths)"
    );
    let overlap = |path: &str| {
        format!(
            "{path} == f.mount || {path} == '/' || \
             f.mount.startsWith({path} + '/') || {path}.startsWith(f.mount + '/')"
        )
    };
    let conflict = format!(
        "{paths}.exists(m, {}) || (has(c.volumeDevices) ? c.volumeDevices : []).exists(d, {})",
        overlap(path),
        overlap("d.devicePath"),
    );
    let chosen = "variables.chosen.exists(k, k.name[0] == c.name && f.name in k.files)";
    let taken = "object.spec.volumes.exists(v, v.name == f.volume && \
                 !((v.name + '=' + f.host) in variables.hostPaths))";
    let taken = format!("(has(object.spec.volumes) && {taken})");
    let own_list =
        "variables.perContainer.filter(p, p.substring(0, p.indexOf('=')).trim() == c.name)";
    vec![
        (
            "annotations",
            "has(object.metadata.annotations) ? object.metadata.annotations : {}".to_owned(),
        ),
        (
            "switches",
            format!(
                "variables.annotations.filter(k, {}).map(k, variables.annotations[k].trim().lowerAscii())",
                is_switch("k")
            ),
        ),
        (
            "wanted",
            format!(
                "!variables.switches.exists(s, s in {}) && (variables.switches.exists(s, s in {}) || ({}))",
                list(&pod::OFF),
                list(&pod::ON),
                namespace_label(pod::NAMESPACE_LABEL, format!("== {}", quote(pod::NAMESPACE_LABEL_ON)))
            ),
        ),
        (
            "attachOnly",
            format!("{attach_all} || {} == 'attach'", annotation(pod::MODE, "mount")),
        ),
        (
            "reason",
            format!(
                "variables.attachOnly ? '' : ({}) ? 'pod-security' : {}",
                namespace_label(pod::POD_SECURITY_LABEL, "in ['baseline', 'restricted']".to_owned()),
                if config.idmapped_mounts {
                    "''"
                } else {
                    "(has(object.spec.hostUsers) && !object.spec.hostUsers) ? 'host-users' : ''"
                }
            ),
        ),
        ("inSpec", "!variables.attachOnly && variables.reason == ''".to_owned()),
        ("files", files(options)),
        (
            "containers",
            "(has(object.spec.initContainers) ? object.spec.initContainers : []) + object.spec.containers"
                .to_owned(),
        ),
        (
            "hostPaths",
            "(has(object.spec.volumes) ? object.spec.volumes : []).filter(v, has(v.hostPath))\
             .map(v, v.name + '=' + v.hostPath.path)"
                .to_owned(),
        ),
        ("containerWords", words(&annotation(pod::CONTAINERS, ""))),
        ("podWords", words(&annotation(pod::FILES, &config.files))),
        (
            "perContainer",
            format!(
                "{}.split(';').filter(p, p.contains('='))",
                annotation(pod::CONTAINER_FILES, "")
            ),
        ),
        (
            "podFiles",
            format!(
                "variables.files.filter(f, {}).map(f, f.name)",
                picks("variables.podWords", "f.standard == 'true'", file_names)
            ),
        ),
        (
            // Per container the words of its own list; the last list of that name counts.
            "lists",
            format!(
                "variables.containers.map(c, {{'name': [string(c.name)], 'words': {}}})",
                words(&format!(
                    "({own_list}.size() == 0 ? 'default' : {own_list}\
                     .map(p, p.substring(p.indexOf('=') + 1))[{own_list}.size() - 1])"
                ))
            ),
        ),
        (
            "picked",
            format!(
                "variables.lists.map(c, {{'name': c.name, 'files': ({}) ? \
                 variables.files.filter(f, {}).map(f, f.name) : []}})",
                picks(
                    "variables.containerWords",
                    "true",
                    "w == c.name[0] || w == '+' + c.name[0] || w == '-' + c.name[0]"
                ),
                picks("c.words", "f.name in variables.podFiles", file_names)
            ),
        ),
        (
            // A tree stands for what is below it.
            "chosen",
            "variables.picked.map(c, {'name': c.name, 'files': \
             c.files.filter(f, !c.files.exists(t, f.startsWith(t + '/')))})"
                .to_owned(),
        ),
        (
            "free",
            format!(
                "variables.containers.map(c, {{'name': [string(c.name)], \
                 'present': variables.files.filter(f, {chosen} && {present}).map(f, f.name), \
                 'conflict': variables.files.filter(f, {chosen} && !{present} && ({conflict})).map(f, f.name), \
                 'free': variables.files.filter(f, {chosen} && !{present} && !({conflict})).map(f, f.name)}})"
            ),
        ),
        (
            "placed",
            format!(
                "variables.free.map(c, {{'name': c.name, 'present': c.present, 'conflict': c.conflict, \
                 'attach': variables.files.filter(f, f.name in c.free && (!variables.inSpec || f.spec == 'false'))\
                 .map(f, f.name), \
                 'taken': variables.files.filter(f, f.name in c.free && variables.inSpec && f.spec == 'true' && {taken})\
                 .map(f, f.name), \
                 'add': variables.files.filter(f, f.name in c.free && variables.inSpec && f.spec == 'true' && !{taken})\
                 .map(f, f.name)}})"
            ),
        ),
        (
            "mounted",
            per_container("f.name in p.present || f.name in p.add"),
        ),
        ("attach", per_container("f.name in p.attach")),
        (
            "skipped",
            "((variables.reason == '' ? [] : ['pod=' + variables.reason]) + \
             variables.placed.map(p, variables.files.filter(f, f.name in p.conflict || f.name in p.taken)\
             .map(f, p.name[0] + '/' + f.name + (f.name in p.conflict ? '=conflict' : '=volume-name')).join(';'))\
             .filter(s, s != '')).join(';')"
                .to_owned(),
        ),
    ]
}

fn per_container(test: &str) -> String {
    format!(
        "variables.placed.filter(p, variables.files.exists(f, {test}))\
         .map(p, p.name[0] + '=' + variables.files.filter(f, {test}).map(f, f.name).join(',')).join(';')"
    )
}

/// The one mutation; an empty object when the pod is not in.
fn mutation() -> String {
    let entry = |key: &str, variable: &str| {
        format!(
            "?{}: variables.{variable} == '' ? optional.none() : optional.of(variables.{variable})",
            quote(key)
        )
    };
    let added = |list: &str| {
        format!(
            "object.spec.{list}.filter(c, variables.placed.exists(p, p.name[0] == c.name && p.add.size() > 0))\
             .map(c, Object.spec.{list}{{name: c.name, volumeMounts: \
             variables.files.filter(f, variables.placed.exists(p, p.name[0] == c.name && f.name in p.add))\
             .map(f, Object.spec.{list}.volumeMounts{{name: f.volume, mountPath: f.mount, readOnly: true}})}})"
        )
    };
    format!(
        "!variables.wanted ? Object{{}} : Object{{\
         metadata: Object.metadata{{annotations: {{{}, {}, {}}}}}, \
         spec: Object.spec{{\
         ?volumes: variables.placed.exists(p, p.add.size() > 0) ? optional.of(\
         variables.files.filter(f, variables.placed.exists(p, f.name in p.add))\
         .map(f, Object.spec.volumes{{name: f.volume, \
         hostPath: Object.spec.volumes.hostPath{{path: f.host, type: f.type}}}})) : optional.none(), \
         ?initContainers: has(object.spec.initContainers) ? optional.of({}) : optional.none(), \
         containers: {}}}}}",
        entry(pod::MOUNTED, "mounted"),
        entry(pod::ATTACH, "attach"),
        entry(pod::SKIPPED, "skipped"),
        added("initContainers"),
        added("containers"),
    )
}

/// The catalogue as a CEL list; all values are text, as CEL's literals want one type.
fn files(options: &Options) -> String {
    let entries: Vec<String> = CATALOGUE
        .iter()
        .filter(|entry| pod::attachable(entry))
        .filter(|entry| !pod::switched_off(&options.config.disable, entry))
        .map(|entry| {
            let fields = [
                ("name", pod::file_name(entry).to_owned()),
                ("words", words_of(entry)),
                ("standard", (entry.attach == Attach::Default).to_string()),
                (
                    "spec",
                    mounts::runtime_accepts(entry, options.config.runtime).to_string(),
                ),
                ("mount", format!("/{}", entry.path)),
                ("volume", mounts::volume_name(entry)),
                (
                    "host",
                    mounts::source_path(&options.config.mountpoint, entry),
                ),
                ("type", mounts::host_path_type(entry).to_owned()),
            ];
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{}: {}", quote(key), quote(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        })
        .collect();
    format!("[{}]", entries.join(",\n"))
}

/// Every word that names an entry, with and without sign, between commas.
fn words_of(entry: &Entry) -> String {
    let name = pod::file_name(entry);
    let mut words = vec![name, entry.path];
    if entry.attach == Attach::Default
        && let Some((group, _)) = name.split_once('/')
    {
        words.push(group);
    }
    let signed = words
        .iter()
        .flat_map(|word| [format!("{word},"), format!("+{word},"), format!("-{word},")]);
    format!(",{}", signed.collect::<String>())
}

fn is_switch(key: &str) -> String {
    let mut tests: Vec<String> = [pod::INJECT, pod::RUNTIME_OPT_IN]
        .iter()
        .map(|name| format!("{key} == {}", quote(name)))
        .collect();
    tests.extend(pod::PEER_SWITCHES.iter().map(|(head, tail)| {
        format!(
            "{key}.startsWith({}) && {key}.endsWith({})",
            quote(head),
            quote(tail)
        )
    }));
    tests.join(" || ")
}

fn list(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("[{}]", words.join(", "))
}

/// A CEL string.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
