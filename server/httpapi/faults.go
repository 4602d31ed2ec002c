package httpapi

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/problem"
)

// formats are those of the contract; the library knows them only loosely or not at all.
var formats = map[string]openapi3.StringFormatValidator{
	"decimal-id": openapi3.NewCallbackValidator(func(s string) error {
		_, err := models.ParseID(s)
		return err
	}),
	"ipv4": openapi3.NewCallbackValidator(func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return errors.New("not an IPv4 address")
		}
		return nil
	}),
	// A zone means nothing to others, and an IPv4 address in IPv6 clothes would get past rules for IPv4.
	"ipv6": openapi3.NewCallbackValidator(func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return errors.New("not an IPv6 address")
		}
		return nil
	}),
}

// badRequest makes one refusal of everything that is wrong with a request. A single fault is told in the detail itself.
func badRequest(faults ...problem.FieldError) *models.Error {
	slices.SortFunc(faults, func(a, b problem.FieldError) int {
		return strings.Compare(a.Pointer+"\x00"+a.Detail, b.Pointer+"\x00"+b.Detail)
	})
	faults = slices.CompactFunc(faults, func(a, b problem.FieldError) bool { return a == b })
	detail := fmt.Sprintf("The request has %d faults; errors says where and what to do.", len(faults))
	if len(faults) == 1 {
		detail = faults[0].Detail
		if faults[0].Pointer != "" {
			detail = faults[0].Pointer + ": " + detail
		}
	}
	return models.Errorf(models.CodeBadRequest, "%s", detail).With(problem.FieldErrors, faults)
}

// fieldErrors takes apart what the validator found.
func fieldErrors(err error) []problem.FieldError {
	var faults []problem.FieldError
	collect(err, "", &faults)
	return faults
}

func collect(err error, parameter string, faults *[]problem.FieldError) {
	//nolint:errorlint // each level is taken apart by itself; errors.As would jump over levels and lose the others of a MultiError
	switch e := err.(type) {
	case openapi3.MultiError:
		for _, inner := range e {
			collect(inner, parameter, faults)
		}
	case *openapi3filter.RequestError:
		name := ""
		if e.Parameter != nil {
			name = e.Parameter.Name
		}
		if e.Parameter != nil && !isSchemaError(e.Err) {
			// It could not even be parsed, or it is empty or missing.
			detail := describe(e.Parameter.Schema.Value)
			if errors.Is(e.Err, openapi3filter.ErrInvalidRequired) {
				detail = "This parameter is required."
			}
			*faults = append(*faults, problem.FieldError{Pointer: name, Detail: detail})
			return
		}
		collect(e.Err, name, faults)
	case *openapi3.SchemaError:
		path := e.JSONPointer()
		if members, ok := e.Value.(map[string]any); ok && e.SchemaField == "properties" {
			// The validator says where the object is, but not which members it doesn't know.
			for name := range members {
				if e.Schema.Properties[name] == nil {
					*faults = append(*faults, problem.FieldError{Pointer: pointer(below(path, name)), Detail: "There is no such member here; leave it out."})
				}
			}
			return
		}
		at := parameter
		if at == "" {
			at = pointer(path)
		}
		*faults = append(*faults, problem.FieldError{Pointer: at, Detail: detail(e)})
	default:
		*faults = append(*faults, problem.FieldError{Pointer: parameter, Detail: "This doesn't fit the contract."})
	}
}

func isSchemaError(err error) bool {
	var schema *openapi3.SchemaError
	return errors.As(err, &schema)
}

// detail says what to do about one broken rule of a schema. It never repeats the value.
func detail(e *openapi3.SchemaError) string {
	switch e.SchemaField {
	case "required":
		return "This member is required."
	case "minProperties":
		return "Give at least one member."
	case "nullable":
		return describe(e.Schema) + " It can't be null."
	default:
		return describe(e.Schema)
	}
}

// describe says in a sentence what a value has to be.
func describe(s *openapi3.Schema) string {
	switch {
	case s == nil:
		return "This doesn't fit the contract."
	case s.Format == "decimal-id":
		return "Give a decimal number from 1 to 9223372036854775807, without sign, leading zero, point and exponent."
	case s.Format == "ipv4":
		return "Give an IPv4 address such as 192.168.1.5."
	case s.Format == "ipv6":
		return "Give an IPv6 address such as 2001:db8::5, without a zone and not an IPv4 address."
	case len(s.Enum) > 0:
		return "Give one of: " + strings.Trim(fmt.Sprint(s.Enum), "[]") + "."
	case s.Type.Is(openapi3.TypeInteger) && s.Min != nil && s.Max != nil:
		return fmt.Sprintf("Give an integer from %.0f to %.0f.", *s.Min, *s.Max)
	case s.Type.Is(openapi3.TypeInteger):
		return "Give an integer."
	case s.Type.Is(openapi3.TypeBoolean):
		return "Give true or false."
	case s.Type.Is(openapi3.TypeObject):
		return "Give a JSON object."
	case s.Type.Is(openapi3.TypeArray):
		return "Give a JSON array."
	case s.Pattern != "" && s.MaxLength != nil:
		return fmt.Sprintf("Give a string of %d to %d characters that matches %s.", s.MinLength, *s.MaxLength, s.Pattern)
	case s.MaxLength != nil:
		return fmt.Sprintf("Give a string of %d to %d characters.", s.MinLength, *s.MaxLength)
	}
	return "Give a string."
}
