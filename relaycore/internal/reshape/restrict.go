package reshape

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/itchyny/gojq"
)

// A restricted expression cannot exhaust memory, nor make one instruction run for long:
// the interpreter can be stopped between instructions only. So
//   - it has the functions of allowed, whose cost grows with their input alone;
//   - arguments that multiply cost are literals;
//   - every operation that builds a value is followed by a call of checked, which adds
//     the value's size to what the evaluation may build.

// allowed has the functions of a restricted expression, and what each needs.
var allowed = makeAllowed(map[need]string{
	nothing: `IN abs all any arrays booleans ceil del delpaths empty endswith error fabs first floor getpath has in
		infinite isempty isinfinite isnan isnormal iterables last length log log10 log2 ltrim ltrimstr max max_by min min_by
		mktime nan not now null nulls numbers objects path paths pow recurse round rtrim rtrimstr scalars select sqrt
		startswith strings trim trimstr trunc type utf8bytelength values toboolean`,
	aCheck: `add ascii_downcase ascii_upcase explode flatten from_entries fromdate fromdateiso8601 fromjson gmtime group_by
		implode keys map map_values reverse sort sort_by split to_entries todate todateiso8601 tojson tostring unique
		unique_by walk with_entries`,
	literals:   `capture contains gsub index indices join match rindex scan sub test`,
	shortInput: `tonumber`,
})

// need is what makes a function safe.
type need int

const (
	nothing    need = iota
	aCheck          // a check of its value
	literals        // literal arguments, and a check
	shortInput      // a check of its input
)

func makeAllowed(byNeed map[need]string) map[string]need {
	out := make(map[string]need)
	for n, names := range byNeed {
		for name := range strings.FieldsSeq(names) {
			out[name] = n
		}
	}
	return out
}

// Functions that a restricted expression calls, and an author cannot: names with two
// underscores in front are not in allowed.
const (
	checkValue  = "__checked"
	checkFactor = "__factor"
	checkShort  = "__short"
)

const (
	maxLiteral = 64   // bytes of a literal argument: join and gsub multiply by it
	maxIndex   = 9999 // of an array element that is assigned
	maxShort   = 1024 // elements of a subtracted array, characters of a number
	maxDepth   = 1000 // of values
)

// functions are the checks. A value that passes is their result.
func (e *expression) functions() []gojq.CompilerOption {
	return []gojq.CompilerOption{
		gojq.WithFunction(checkValue, 0, 0, func(v any, _ []any) any {
			if e.left -= measure(v, e.left, 0); e.left < 0 {
				return errors.New("builds more values than a message may, or too deep ones; jq_unrestricted permits it")
			}
			return v
		}),
		gojq.WithFunction(checkFactor, 0, 0, func(v any, _ []any) any {
			if _, text := v.(string); text {
				return errors.New("a string is multiplied; jq_unrestricted permits it")
			}
			return short(v)
		}),
		gojq.WithFunction(checkShort, 0, 0, func(v any, _ []any) any { return short(v) }),
	}
}

func short(v any) any {
	n := 0
	switch v := v.(type) {
	case *big.Int:
		n = v.BitLen() / 4
	case json.Number:
		n = len(v)
	case string:
		n = len(v)
	case []any:
		n = len(v)
	}
	if n > maxShort {
		return fmt.Errorf("a number or array is longer than %d; jq_unrestricted permits it", maxShort)
	}
	return v
}

// measure returns about how many bytes v is written in, each part of it as often as it
// is written. It returns more than limit as soon as that is certain, or v is too deep.
func measure(v any, limit, depth int) int {
	if depth > maxDepth {
		return limit + 1
	}
	n := 4
	switch v := v.(type) {
	case string:
		n += len(v)
	case json.Number:
		n += len(v)
	case *big.Int:
		n += v.BitLen() / 3
	case []any:
		for _, element := range v {
			if n += 1 + measure(element, limit-n, depth+1); n > limit {
				return n
			}
		}
	case map[string]any:
		for name, value := range v {
			if n += 4 + len(name) + measure(value, limit-n, depth+1); n > limit {
				return n
			}
		}
	}
	return n
}

// restricter rewrites an expression. err is the first thing that it refuses.
type restricter struct {
	text string
	err  error
}

func (r *restricter) refuse(what, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format+"%s; jq_unrestricted permits it", append(args, placeOf(r.text, what))...)
	}
}

func (r *restricter) queries(qs ...*gojq.Query) {
	for _, q := range qs {
		r.query(q)
	}
}

func (r *restricter) query(q *gojq.Query) {
	if q == nil || r.err != nil {
		return
	}
	if len(q.FuncDefs) > 0 {
		r.refuse("def", `"def" is not allowed`)
	}
	if q.Meta != nil || len(q.Imports) > 0 {
		r.refuse("", "modules are not allowed")
	}
	if q.Term != nil {
		r.term(q.Term)
		return
	}
	if assigns(q.Op) {
		r.path(q.Left)
	}
	r.queries(q.Left, q.Right)
	for _, p := range q.Patterns {
		r.pattern(p)
	}
	switch q.Op {
	case gojq.OpMul:
		q.Left, q.Right = then(q.Left, checkFactor), then(q.Right, checkFactor)
	case gojq.OpSub:
		q.Left, q.Right = then(q.Left, checkShort), then(q.Right, checkShort)
	case gojq.OpUpdateMul:
		r.refuse("*=", `"*=" is not allowed, but "|= . * …" is`)
	case gojq.OpUpdateSub:
		r.refuse("-=", `"-=" is not allowed, but "|= . - …" is`)
	case gojq.OpAdd, gojq.OpDiv:
	default:
		if !assigns(q.Op) {
			return
		}
	}
	*q = *then(&gojq.Query{Left: q.Left, Right: q.Right, Op: q.Op, Patterns: q.Patterns}, checkValue)
}

// then returns q | name.
func then(q *gojq.Query, name string) *gojq.Query {
	return &gojq.Query{Left: q, Op: gojq.OpPipe, Right: call(name)}
}

func call(name string) *gojq.Query {
	return &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeFunc, Func: &gojq.Func{Name: name}}}
}

func assigns(op gojq.Operator) bool { return op >= gojq.OpAssign && op <= gojq.OpUpdateAlt }

// path refuses what could assign an array element far behind the others.
func (r *restricter) path(q *gojq.Query) {
	if q.Term == nil {
		if q.Op != gojq.OpPipe && q.Op != gojq.OpComma && q.Op != gojq.OpAlt {
			r.refuse(q.Op.String(), "%q is not allowed on the left of an assignment", q.Op)
			return
		}
		r.path(q.Left)
		r.path(q.Right)
		return
	}
	t := q.Term
	switch t.Type {
	case gojq.TermTypeIdentity, gojq.TermTypeRecurse, gojq.TermTypeIndex:
	case gojq.TermTypeQuery:
		r.path(t.Query)
	case gojq.TermTypeFunc:
		if t.Func.Name != "select" && t.Func.Name != "empty" {
			r.refuse(t.Func.Name, "%q is not allowed on the left of an assignment", t.Func.Name)
		}
	default:
		r.refuse("", "%q is not allowed on the left of an assignment", t)
	}
	indices := []*gojq.Index{t.Index}
	for _, s := range t.SuffixList {
		indices = append(indices, s.Index)
	}
	for _, i := range indices {
		if i != nil && (i.IsSlice || i.Start != nil && !isName(i.Start)) {
			r.refuse("[", "only literal names and indices up to %d are allowed on the left of an assignment", maxIndex)
		}
	}
}

// isName reports whether q is a literal name or a small literal index.
func isName(q *gojq.Query) bool {
	if q.Term == nil || len(q.Term.SuffixList) > 0 {
		return false
	}
	switch q.Term.Type {
	case gojq.TermTypeString:
		return len(q.Term.Str.Queries) == 0
	case gojq.TermTypeNumber:
		n, err := strconv.Atoi(q.Term.Number)
		return err == nil && n <= maxIndex
	default:
		return false
	}
}

func (r *restricter) pattern(p *gojq.Pattern) {
	if p == nil {
		return
	}
	for _, element := range p.Array {
		r.pattern(element)
	}
	for _, o := range p.Object {
		r.query(o.KeyQuery)
		r.str(o.KeyString)
		r.pattern(o.Val)
	}
}

func (r *restricter) str(s *gojq.String) {
	if s != nil {
		r.queries(s.Queries...)
	}
}

func (r *restricter) term(t *gojq.Term) {
	check := false
	switch t.Type {
	case gojq.TermTypeFunc:
		check = r.function(t)
	case gojq.TermTypeObject:
		for _, kv := range t.Object.KeyVals {
			r.str(kv.KeyString)
			r.queries(kv.KeyQuery, kv.Val)
		}
		check = true
	case gojq.TermTypeArray:
		r.query(t.Array.Query)
		check = t.Array.Query != nil
	case gojq.TermTypeUnary:
		r.term(t.Unary.Term)
	case gojq.TermTypeString, gojq.TermTypeFormat:
		r.str(t.Str)
		check = t.Type == gojq.TermTypeFormat || len(t.Str.Queries) > 0
	case gojq.TermTypeIf:
		r.queries(t.If.Cond, t.If.Then, t.If.Else)
		for _, e := range t.If.Elif {
			r.queries(e.Cond, e.Then)
		}
	case gojq.TermTypeTry:
		r.queries(t.Try.Body, t.Try.Catch)
	case gojq.TermTypeReduce:
		r.queries(t.Reduce.Query, t.Reduce.Start, t.Reduce.Update)
	case gojq.TermTypeForeach:
		r.queries(t.Foreach.Query, t.Foreach.Start, t.Foreach.Update, t.Foreach.Extract)
	case gojq.TermTypeLabel:
		r.query(t.Label.Body)
	case gojq.TermTypeQuery:
		r.query(t.Query)
	default: // has no parts but the next
	}
	r.index(t.Index)
	for _, s := range t.SuffixList {
		r.index(s.Index)
	}
	if check {
		built, suffixes := *t, t.SuffixList
		built.SuffixList = nil
		*t = gojq.Term{Type: gojq.TermTypeQuery, Query: then(&gojq.Query{Term: &built}, checkValue), SuffixList: suffixes}
	}
}

func (r *restricter) index(i *gojq.Index) {
	if i != nil {
		r.str(i.Str)
		r.queries(i.Start, i.End)
	}
}

// function refuses a function that is not allowed, and reports whether its value is to
// be checked.
func (r *restricter) function(t *gojq.Term) bool {
	f := t.Func
	if strings.HasPrefix(f.Name, "$") {
		if f.Name == "$ENV" {
			r.refuse(f.Name, "%q is not allowed", f.Name)
		}
		return false
	}
	n, known := allowed[f.Name]
	if !known {
		r.refuse(f.Name, "function %q is not allowed", f.Name)
		return false
	}
	if n != literals {
		r.queries(f.Args...)
	}
	switch n {
	case shortInput:
		called := *t
		called.SuffixList = nil
		*t = gojq.Term{Type: gojq.TermTypeQuery, SuffixList: t.SuffixList, Query: &gojq.Query{
			Left: call(checkShort), Op: gojq.OpPipe, Right: &gojq.Query{Term: &called},
		}}
	case literals:
		for _, arg := range f.Args {
			if !isLiteral(arg) {
				r.refuse(f.Name, "the arguments of %q are not literals of at most %d bytes", f.Name, maxLiteral)
			}
		}
	case nothing, aCheck:
	}
	return n == aCheck || n == literals
}

// isLiteral reports whether q is written as JSON, and is short.
func isLiteral(q *gojq.Query) bool {
	text := q.String()
	return len(text) <= maxLiteral && json.Valid([]byte(text))
}
