//! The files of `deploy/`: a directory per part, a kustomization per overlay, the chart.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ManifestError, OVERLAYS, Options, Part, helm, monitoring, yaml};

const NOTE: &str =
    "# Written by `lxcfs manifests --write deploy`; edit lxcfs-kube/src/manifests instead.\n";

/// Path below the target directory and content of every generated file.
pub fn tree(options: &Options) -> Result<BTreeMap<String, String>, ManifestError> {
    let mut files = BTreeMap::new();
    for part in Part::ALL {
        let directory = format!("kubernetes/parts/{}", part.name());
        let mut resources = Vec::new();
        for object in part.objects(options)? {
            let name = file_name(&object);
            files.insert(format!("{directory}/{name}"), document(&object)?);
            resources.push(name);
        }
        let kustomization = kustomization(&resources);
        files.insert(
            format!("{directory}/kustomization.yaml"),
            document(&kustomization)?,
        );
    }
    for overlay in OVERLAYS {
        let parts: Vec<String> = overlay
            .parts
            .iter()
            .map(|part| format!("../../parts/{}", part.name()))
            .collect();
        let text = format!(
            "{NOTE}# {}.\n{}",
            overlay.about,
            yaml(&[kustomization(&parts)])?
        );
        files.insert(
            format!("kubernetes/overlays/{}/kustomization.yaml", overlay.name),
            text,
        );
    }
    files.insert(
        "prometheus/lxcfs.rules.yaml".to_owned(),
        document(&monitoring::rules())?,
    );
    files.extend(helm::chart(options)?);
    Ok(files)
}

fn document(object: &Value) -> Result<String, ManifestError> {
    Ok(format!("{NOTE}{}", yaml(std::slice::from_ref(object))?))
}

fn kustomization(resources: &[String]) -> Value {
    json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": resources,
    })
}

/// `kind-name.yaml`, shorter where the name says it.
pub fn file_name(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    format!("{kind}-{name}.yaml")
}
