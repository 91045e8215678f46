# Licences

What the binaries are linked with, by `make licenses`. The relay itself is Apache-2.0.

| module | licence |
|---|---|
{{- range .}}{{if ne .LicenseName "Unknown"}}
| {{.Name}} | {{.LicenseName}} |
{{- end}}{{end}}
