// Renders one template of a chart as Helm does: Go's text/template with sprig's functions and
// an error for a value that is not there. `cargo xtask chart` builds it.
package main

import (
	"encoding/json"
	"log"
	"os"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

func main() {
	var input struct {
		Template string
		Values   map[string]interface{}
		Release  map[string]interface{}
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		log.Fatal(err)
	}
	parsed, err := template.New("chart").
		Option("missingkey=error").
		Funcs(sprig.TxtFuncMap()).
		Parse(input.Template)
	if err != nil {
		log.Fatal(err)
	}
	data := map[string]interface{}{"Values": input.Values, "Release": input.Release}
	if err := parsed.Execute(os.Stdout, data); err != nil {
		log.Fatal(err)
	}
}
