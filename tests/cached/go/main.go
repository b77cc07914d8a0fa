// A program whose packages have to be fetched.
package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/net/html"
	"golang.org/x/text/language"
	"gopkg.in/yaml.v3"
)

func main() {
	root := &cobra.Command{Use: "cached", Run: func(*cobra.Command, []string) {
		told, _ := yaml.Marshal(map[string]string{"page": html.EscapeString("<p>"), "in": language.German.String()})
		fmt.Print(string(told))
	}}
	_ = root.Execute()
}
