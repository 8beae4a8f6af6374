// Evaluates our admission policy over pods with the API server's own code. It is compiled
// inside k8s.io/apiserver/pkg/admission/plugin/policy/mutating, whose compiler is private;
// see `cargo xtask policy`.
//
// In: the file LXCFS_POLICY (the policy as JSON) and LXCFS_CASES (one JSON per line:
// {"pod": …, "labels": {…}}). Out: LXCFS_RESULTS, one JSON per line: {"pod": …} or
// {"error": …}; a pod that no match condition let through comes back as it was.
package mutating

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"testing"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/client-go/applyconfigurations"
)

type lxcfsCase struct {
	Pod    corev1.Pod        `json:"pod"`
	Labels map[string]string `json:"labels"`
}

func TestLxcfsPolicy(t *testing.T) {
	text, err := os.ReadFile(os.Getenv("LXCFS_POLICY"))
	if err != nil {
		t.Fatal(err)
	}
	policy := &v1.MutatingAdmissionPolicy{}
	if err := json.Unmarshal(text, policy); err != nil {
		t.Fatal(err)
	}
	evaluator := compilePolicy(policy)
	if evaluator.Error != nil {
		t.Fatal(evaluator.Error)
	}
	if len(evaluator.Mutators) != 1 {
		t.Fatalf("%d mutations: with more than one, Ignore may apply half of them", len(evaluator.Mutators))
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	converter := applyconfigurations.NewTypeConverter(scheme)
	interfaces := admission.NewObjectInterfacesFromScheme(scheme)
	in, err := os.Open(os.Getenv("LXCFS_CASES"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(os.Getenv("LXCFS_RESULTS"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	answers := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<24)
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	gvr := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	for lines.Scan() {
		one := lxcfsCase{}
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			t.Fatal(err)
		}
		pod := &one.Pod
		pod.SetGroupVersionKind(gvk)
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: one.Labels}}
		attributes := &admission.VersionedAttributes{
			Attributes: admission.NewAttributesRecord(pod, nil, gvk, "web", pod.Name, gvr, "",
				admission.Create, &metav1.CreateOptions{}, false, nil),
			VersionedKind:   gvk,
			VersionedObject: pod,
		}
		ctx := evaluator.CompositedCompiler.CreateContext(context.Background())
		match := evaluator.Matcher.Match(ctx, attributes, nil, nil)
		if match.Error != nil {
			must(t, answers.Encode(map[string]string{"error": match.Error.Error()}))
			continue
		}
		if !match.Matches {
			must(t, answers.Encode(map[string]any{"pod": pod}))
			continue
		}
		patched, err := evaluator.Mutators[0].Patch(ctx, patch.Request{
			MatchedResource:     gvr,
			VersionedAttributes: attributes,
			ObjectInterfaces:    interfaces,
			OptionalVariables:   plugincel.OptionalVariableBindings{},
			Namespace:           namespace,
			TypeConverter:       converter,
		}, celconfig.RuntimeCELCostBudget)
		if err != nil {
			must(t, answers.Encode(map[string]string{"error": err.Error()}))
			continue
		}
		must(t, answers.Encode(map[string]any{"pod": patched}))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
