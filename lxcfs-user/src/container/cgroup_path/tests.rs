use super::*;
use proptest::prelude::*;

const ID: &str = "4c01db0b339c8a1d5c2d2b1f7bb9b5d3a0b7f7f0c3d1e2f4a5b6c7d8e9f0a1b2";
const ID2: &str = "ffffffff339c8a1d5c2d2b1f7bb9b5d3a0b7f7f0c3d1e2f4a5b6c7d8e9f0a1b2";
const TASK: &str = "0123456789abcdef0123456789abcdef";

/// `[…]` marks the container in a real-world path; ID and POD are filled in.
fn check(pattern: &str, runtime: Runtime) {
    let pattern = pattern
        .replace("ID2", ID2)
        .replace("ID", ID)
        .replace("TASK", TASK)
        .replace("POD", "2f9b1a0e-8d5c-4b1e-9c39-3f1d6c1c2d3e");
    let path = pattern.replace(']', "");
    let container = pattern.split(']').next().unwrap();
    let found = innermost(&path);
    assert_eq!(
        found,
        Some(Named {
            path: container,
            runtime
        }),
        "{pattern}"
    );
}

#[test]
fn the_cgroupfs_driver_names_by_id() {
    for pattern in [
        "/docker/ID]",
        "/docker/ID]/init.scope",
        "/docker/ID]/system.slice/cron.service",
        "/kubepods/burstable/podPOD/ID]",
        "/kubepods/besteffort/podPOD/ID]/sub/deeper",
        "/kubepods/podPOD/ID]",
        "/libpod_parent/ID2/ID]",
        "/default/ID]",
    ] {
        check(pattern, Runtime::CgroupfsDriver);
    }
}

#[test]
fn the_systemd_driver_names_a_scope() {
    for (pattern, runtime) in [
        ("/system.slice/docker-ID.scope]", Runtime::Docker),
        ("/system.slice/docker-ID.scope]/init.scope", Runtime::Docker),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD.slice/cri-containerd-ID.scope]",
            Runtime::Containerd,
        ),
        (
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podPOD.slice/cri-containerd-ID.scope]",
            Runtime::Containerd,
        ),
        (
            "/kubepods.slice/kubepods-podPOD.slice/crio-ID.scope]",
            Runtime::Crio,
        ),
        (
            "/kubepods.slice/kubepods-podPOD.slice/crio-ID.scope]/container",
            Runtime::Crio,
        ),
        ("/machine.slice/libpod-ID.scope]", Runtime::Podman),
        ("/machine.slice/libpod-ID.scope]/container", Runtime::Podman),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope]/container",
            Runtime::Podman,
        ),
        (
            "/machine.slice/machine-libpod_pod_ID2.slice/libpod-ID.scope]",
            Runtime::Podman,
        ),
        ("/libpod_parent/libpod-ID]", Runtime::Podman),
        ("/machine.slice/libpod-payload-ID]", Runtime::Podman),
        ("/system.slice/nerdctl-ID.scope]", Runtime::Containerd),
        ("/system.slice/acme-ID.scope]", Runtime::Scope),
    ] {
        check(pattern, runtime);
    }
}

#[test]
fn a_systemd_name_given_to_the_cgroupfs_driver() {
    check(
        "/system.slice/containerd.service/kubepods-burstable-podPOD.slice:cri-containerd:ID]",
        Runtime::Containerd,
    );
    check("/system.slice:docker:ID]/x", Runtime::Docker);
}

#[test]
fn lxc_in_all_its_spellings() {
    for pattern in [
        "/lxc.payload.web]",
        "/lxc.payload.web]/init.scope",
        "/lxc.payload.web]/system.slice/ssh.service",
        "/lxc.payload/web]",
        "/lxc/101]",
        "/lxc/101]/ns/system.slice",
        "/user.slice/user-0.slice/session-4.scope/lxc.payload.c1]",
    ] {
        check(pattern, Runtime::Lxc);
    }
}

#[test]
fn machines_but_not_virtual_ones() {
    for pattern in [
        "/machine.slice/machine-web.scope]",
        "/machine.slice/machine-web.scope/payload]/system.slice",
        "/machine.slice/systemd-nspawn@web.service/payload]/init.scope",
        "/machine.slice/systemd-nspawn@web.service]/supervisor",
        "/machine.slice/machine-lxc\\x2d17\\x2dweb.scope]",
    ] {
        check(pattern, Runtime::Machine);
    }
    assert_eq!(
        innermost("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/emulator"),
        None
    );
}

#[test]
fn the_innermost_of_nested_containers_wins() {
    check("/docker/ID2/docker/ID]", Runtime::CgroupfsDriver);
    check("/lxc.payload.c1/docker/ID]/x", Runtime::CgroupfsDriver);
    check("/lxc.payload.c1/lxc.payload.c2]", Runtime::Lxc);
    check(
        "/docker/ID2/kubelet/kubepods/burstable/podPOD/ID]",
        Runtime::CgroupfsDriver,
    );
    check(
        "/system.slice/docker-ID2.scope/system.slice/docker-ID.scope]",
        Runtime::Docker,
    );
    check(
        "/lxc.payload.c1/system.slice/docker-ID.scope]",
        Runtime::Docker,
    );
}

#[test]
fn others() {
    check("/docker/buildkit/x7k2m1p9]", Runtime::BuildKit);
    check("/ecs/TASK/TASK-1234567890]", Runtime::Ecs);
    check("/ecs/TASK/ID]", Runtime::CgroupfsDriver);
}

#[test]
fn what_belongs_to_the_host_is_no_container() {
    let conmon = format!("/machine.slice/libpod-conmon-{ID}.scope");
    let crio = format!("/kubepods.slice/crio-conmon-{ID}.scope");
    let pod = format!("/machine.slice/machine-libpod_pod_{ID}.slice");
    for path in [
        "/",
        "",
        "/init.scope",
        "/system.slice/docker.service",
        "/system.slice/containerd.service",
        "/kubepods.slice/kubepods-burstable.slice",
        "/kubepods/burstable/pod2f9b1a0e-8d5c-4b1e-9c39-3f1d6c1c2d3e",
        "/user.slice/user-1000.slice/session-2.scope",
        "/lxc.monitor.web",
        "/lxc.monitor/web",
        "/lxc.payload.",
        "/lxc",
        "/docker/4c01db0b339c",
        "/machine.slice",
        "/machine.slice/machine-.scope",
        conmon.as_str(),
        crio.as_str(),
        pod.as_str(),
    ] {
        assert_eq!(innermost(path), None, "{path}");
    }
}

#[test]
fn init_leaves_are_stripped_once() {
    for (path, stripped) in [
        ("/a/init.scope", "/a"),
        ("/docker/x/init", "/docker/x"),
        ("/a/supervisor", "/a"),
        ("/init.scope", "/"),
        ("/a/initrd", "/a/initrd"),
        ("/", "/"),
    ] {
        assert_eq!(without_init_leaf(path), stripped);
    }
}

proptest! {
    #[test]
    fn a_container_is_always_a_prefix_that_ends_at_a_component(
        path in "(/(docker|lxc|[a-f0-9]{64}|lxc\\.payload\\.x|machine-a\\.scope|[^/]{0,8})){0,8}"
    ) {
        if let Some(found) = innermost(&path) {
            prop_assert!(path.starts_with(found.path));
            let rest = &path[found.path.len()..];
            prop_assert!(rest.is_empty() || rest.starts_with('/'));
            // Asking about the container itself gives the same container.
            prop_assert_eq!(innermost(found.path), Some(found));
        }
    }

    #[test]
    fn any_text_is_answered(path in "(?s).{0,200}") {
        let _ = innermost(&path);
        let _ = without_init_leaf(&path);
    }
}
